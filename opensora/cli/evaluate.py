"""opensora evaluate: metrics of folders of generated videos."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from opensora.config.command_line import parse_flags
from opensora.config.evaluation import EvaluateOptions
from opensora.config.options import from_mapping


def parse_args(argv: Optional[Sequence[str]] = None) -> EvaluateOptions:
    description = "Metrics of generated videos: against real videos, against their prompts, or of their own."
    return from_mapping(EvaluateOptions, vars(parse_flags(description, (EvaluateOptions,), argv)))


def main(argv: Optional[Sequence[str]] = None) -> None:
    options = parse_args(argv)
    from opensora.eval.report import print_folders, print_skipped, print_table, write_report
    from opensora.eval.run import evaluate

    results = evaluate(options)
    for result in results:
        if len(results) > 1:
            print(f"{result.folder}:")
        if any(result.videos.values()):
            print_table(result.videos)
        print_skipped(result.skipped)
        if result.unpaired:
            print(f"unpaired {len(result.unpaired)}: {', '.join(result.unpaired)}")
    if options.metric is None:
        print()
        print_folders(results)
    if options.output_dir is not None:
        write_report(Path(options.output_dir), options, results)
        print(f"report in {options.output_dir}")
