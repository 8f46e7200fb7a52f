"""Several text-to-video trainings in the same processes, each with the flags of one argument.

tests/unit/train/test_training.py runs it under msrun, whose start takes longer than the trainings.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # msrun starts it as a script

from opensora.process.supervision import supervise  # noqa: E402

if __name__ == "__main__":
    supervise()  # under msrun, before MindSpore is imported

from opensora.config.command_line import run_main  # noqa: E402
from opensora.train.t2v import T2VTraining  # noqa: E402
from opensora.train.t2v_options import parse_options  # noqa: E402
from opensora.train.trainer import run  # noqa: E402


def train(argv: list[str]) -> None:
    """As train_t2v_diffusers.py does, in this process."""
    run(T2VTraining, *parse_options(argv))


def main() -> None:
    for flags in sys.argv[1:]:
        train(flags.split())


if __name__ == "__main__":
    run_main(main)
