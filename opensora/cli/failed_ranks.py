"""opensora failed-ranks: prints why a run under msrun failed, from the logs of its processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

from opensora.config.command_line import parse_flags
from opensora.config.commands import FailedRanksOptions
from opensora.process.failed_ranks import failure_report


def main(argv: Optional[Sequence[str]] = None) -> None:
    args = parse_flags("Prints why a run under msrun failed.", (FailedRanksOptions,), argv)
    for line in failure_report(args.log_dir, args.since):
        print(f"error: {line}")
