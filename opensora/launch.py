"""msrun with an orderly shutdown, for scripts:

    python -m opensora.launch --worker_num=8 --local_worker_num=8 --join=True opensora/train/train_t2v_diffusers.py ...

All arguments are those of msrun. SIGTERM, SIGINT and SIGHUP are forwarded to the ranks, which stop as they do without
msrun: a training saves a checkpoint. This command waits for them; a second signal ends them at once. The exit status is
0 if all ranks succeeded, 128 plus the signal's number after a signal, and 1 otherwise.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Optional

from opensora.process.control import REPEATED_WITHIN, USER_SIGNALS, die_with_parent, flag_value, fronts_of
from opensora.process.failed_ranks import failure_report


def main() -> None:
    launcher, started = os.getpid(), time.time()

    def before_msrun() -> None:
        os.setsid()  # Ctrl-C at a terminal reaches this process only
        if not die_with_parent(launcher, signal.SIGTERM):
            os._exit(1)

    try:
        msrun = subprocess.Popen(["msrun", *sys.argv[1:]], preexec_fn=before_msrun)
    except FileNotFoundError:
        sys.exit("error: msrun was not found; activate the environment that MindSpore is installed in")
    stop_signal: Optional[int] = None
    stopped_at = 0.0

    def forward(number: int, frame) -> None:
        nonlocal stop_signal, stopped_at
        if stop_signal is None:
            stop_signal, stopped_at = number, time.monotonic()
        elif time.monotonic() - stopped_at < REPEATED_WITHIN:
            return
        ranks = fronts_of(msrun.pid)
        for pid in ranks:
            os.kill(pid, signal.SIGTERM)
        if not ranks:  # they have not started yet
            msrun.terminate()

    for number in USER_SIGNALS:
        signal.signal(number, forward)
    status = msrun.wait()
    if status == 0:
        return
    if stop_signal is not None:
        sys.exit(128 + stop_signal)
    for line in failure_report(Path(flag_value(sys.argv, "--log_dir") or "."), since=started):
        print(f"error: {line}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    main()
