"""A program like training: prints the ids of its two data workers and reads until it is stopped."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import mindspore  # noqa: F401  as in training; its workers do not import it
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from loader_checks import Slow  # noqa: E402

from opensora.config.command_line import run_main  # noqa: E402
from opensora.datasets.loader import Loader  # noqa: E402
from opensora.datasets.sampler import BatchSampler  # noqa: E402


def main() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as opensora.device does
    for batch in Loader(Slow(), BatchSampler([np.arange(4)], 1), num_workers=2):
        print(int(batch["process"][0]), flush=True)
        time.sleep(0.1)


if __name__ == "__main__":
    run_main(main)
