"""Writes small random weights with the layout of a published release of Open-Sora-Plan, to try commands:

    python tools/make_tiny_release.py --version v1_1 --output_dir DIR

A release takes a few megabytes. Videos made with these weights are noise.
"""

from __future__ import annotations

import sys

try:
    from opensora.config.command_line import parse_flags, run_main
    from opensora.config.commands import TinyReleaseOptions
    from opensora.config.options import from_mapping
except ModuleNotFoundError as error:
    sys.exit(f"error: {error}; in the folder of the clone, run: pip install -e . (or: bash scripts/setup.sh)")


def main() -> None:
    description = "Writes small random weights with the layout of a published release."
    options = from_mapping(TinyReleaseOptions, vars(parse_flags(description, (TinyReleaseOptions,))))
    from opensora.cli.tiny_release import write_release  # imports MindSpore

    for folder in write_release(options.output_dir, options.version):
        print(folder)


if __name__ == "__main__":
    run_main(main)
