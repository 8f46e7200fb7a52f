"""A rank without MindSpore; tests/distributed/test_supervision.py runs it under the real msrun."""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # msrun starts it as a script

from opensora.process.supervision import supervise  # noqa: E402

if __name__ == "__main__":
    supervise()

from opensora.config.command_line import run_main  # noqa: E402
from opensora.errors import UserError  # noqa: E402
from opensora.process.signals import Stopped, graceful_stop  # noqa: E402


def main() -> None:
    folder, mode = Path(sys.argv[1]), sys.argv[2]
    role = "scheduler" if os.environ["MS_ROLE"] == "MS_SCHED" else f"rank{os.environ['RANK_ID']}"
    (folder / f"{role}.pid").write_text(str(os.getpid()))
    if role == "scheduler":
        wait_for(folder / "finished")
    elif mode == "crash at exit":
        atexit.register(os.kill, os.getpid(), signal.SIGSEGV)
    elif mode == "error":
        if role == "rank1":
            wait_for(folder / "rank0.pid")
            raise UserError("clip.mp4: cannot be read")
        time.sleep(60)
    else:
        child = subprocess.Popen(["sleep", "60"])
        (folder / f"{role}.child").write_text(str(child.pid))
        with graceful_stop("saving a checkpoint") as stop:
            (folder / f"{role}.ready").touch()
            while stop.signal is None or mode == "stuck":
                time.sleep(0.05)
            time.sleep(0.5)
            (folder / f"{role}.saved").touch()
        raise Stopped(stop.signal)


def wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.05)


if __name__ == "__main__":
    run_main(main)
