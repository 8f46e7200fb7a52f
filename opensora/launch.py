"""msrun with an orderly end, for scripts:

    python -m opensora.launch --worker_num=8 --local_worker_num=8 --join=True opensora/train/train_t2v_diffusers.py ...

All arguments are those of msrun. SIGTERM, SIGINT and SIGHUP go to the ranks, which stop as they do on their own: a
training saves a checkpoint. This command waits for them; a second signal ends them at once. The exit status is 0 if all
ranks succeeded, 128 and the signal's number after a signal, and 1 otherwise.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from opensora.process.failed_ranks import failure_report
from opensora.process.supervision import REPEATED_WITHIN, USER_SIGNALS, die_with_parent, flag_value, fronts_of


def main() -> None:
    launcher, started = os.getpid(), time.time()

    def before_msrun() -> None:
        os.setsid()  # Ctrl-C at a terminal comes to this process only
        if not die_with_parent(launcher, signal.SIGTERM):
            os._exit(1)

    try:
        msrun = subprocess.Popen(["msrun", *sys.argv[1:]], preexec_fn=before_msrun)
    except FileNotFoundError:
        sys.exit("error: msrun was not found; activate the environment that MindSpore is installed in")
    asked_by, asked_at = None, 0.0

    def forward(number: int, frame) -> None:
        nonlocal asked_by, asked_at
        if asked_by is not None and time.monotonic() - asked_at < REPEATED_WITHIN:
            return
        if asked_by is None:
            asked_by, asked_at = number, time.monotonic()
        ranks = fronts_of(msrun.pid)
        for pid in ranks:
            os.kill(pid, signal.SIGTERM)
        if not ranks:  # they have not started yet
            msrun.terminate()

    for number in USER_SIGNALS:
        signal.signal(number, forward)
    status = msrun.wait()
    if status != 0 and asked_by is None:
        for line in failure_report(Path(flag_value(sys.argv, "--log_dir") or "."), since=started):
            print(f"error: {line}", file=sys.stderr)
        sys.exit(1)
    if status != 0:
        sys.exit(128 + asked_by)


if __name__ == "__main__":
    main()
