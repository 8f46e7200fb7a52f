"""opensora prepare: makes the files that training reads from a folder of clips with captions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

from opensora.config.command_line import parse_flags
from opensora.config.options import from_mapping


def main(argv: Optional[Sequence[str]] = None) -> None:
    from opensora.datasets.prepare.options import PrepareOptions, SelectionFlags

    args = parse_flags(
        "Makes the files that training reads from a folder of clips with captions, and reports what training leaves "
        "out.",
        (PrepareOptions, SelectionFlags),
        argv,
    )
    options, flags = from_mapping(PrepareOptions, vars(args)), from_mapping(SelectionFlags, vars(args))
    from opensora.datasets.prepare.run import prepare

    print(prepare(options, flags))
