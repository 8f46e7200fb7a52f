"""opensora serve, opensora studio: the web service that makes videos, and its page."""

from __future__ import annotations

import os
import webbrowser
from collections.abc import Sequence
from contextlib import suppress
from typing import Callable, Optional

from opensora.config.command_line import parse_flags
from opensora.config.options import from_mapping
from opensora.errors import UserError
from opensora.serve.options import OPTIONS, TOKEN, ServeOptions

PACKAGES = ("fastapi", "uvicorn", "starlette", "pydantic", "python_multipart", "multipart")


def main(argv: Optional[Sequence[str]] = None) -> None:
    _run("Serves the studio: a queue of videos to make, over HTTP, and a page for it.", argv)


def studio(argv: Optional[Sequence[str]] = None) -> None:
    _run("Serves the studio, as opensora serve does, and opens its page in a browser.", argv, _open_page)


def _run(description: str, argv: Optional[Sequence[str]], on_start: Optional[Callable[[str], None]] = None) -> None:
    args = parse_flags(description, OPTIONS, argv, yaml_file=True)
    args.token = args.token or os.environ.get(TOKEN)
    options = from_mapping(ServeOptions, vars(args))
    try:
        from opensora.serve.server import serve  # imports the packages of the extra
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in PACKAGES:
            raise
        raise UserError(f"{error.name} is missing: pip install 'opensora-mindspore[studio]'") from error
    serve(options, args, on_start)


def _open_page(address: str) -> None:
    """Opens a browser where there is a screen; browsers of a terminal would take it over."""
    if os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        with suppress(webbrowser.Error):
            webbrowser.open(address)
