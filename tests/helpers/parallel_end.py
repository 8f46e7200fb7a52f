"""Processes that meet at barriers until one of them fails; tests/distributed/test_parallel.py runs it under msrun."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # msrun starts it as a script

from opensora.process.supervision import supervise  # noqa: E402

if __name__ == "__main__":
    supervise()  # under msrun, before MindSpore is imported

from opensora import device  # noqa: E402
from opensora.config.command_line import run_main  # noqa: E402
from opensora.errors import UserError  # noqa: E402
from opensora.parallel.collectives import barrier  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--end", choices=("error", "kill"), required=True)
    parser.add_argument("--wait_for", type=Path, required=True, help="rank 1 fails when this file exists")
    device.add_arguments(parser)
    args = parser.parse_args()
    dev = device.setup(args)
    print("JOINED", flush=True)
    while True:
        barrier(dev.world_size)
        time.sleep(0.1)
        if dev.rank == 1 and args.wait_for.exists():
            if args.end == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise UserError("clip.mp4: cannot be read")


if __name__ == "__main__":
    run_main(main)
