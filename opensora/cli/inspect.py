"""opensora inspect: says what files and folders of weights hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

from opensora.config.command_line import parse_flags
from opensora.config.commands import InspectOptions


def main(argv: Optional[Sequence[str]] = None) -> None:
    args = parse_flags("Says what files and folders of weights hold.", (InspectOptions,), argv)
    from opensora.checkpoint.inspect import inspect  # imports numpy

    print("\n\n".join(description.text() for path in args.paths for description in inspect(path)))
