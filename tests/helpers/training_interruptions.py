"""Signals at random moments of real training runs, each resumed and compared with an uninterrupted run:

python tests/helpers/training_interruptions.py FOLDER --layout ddp --interruptions 20 --seed 1
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
from made_clips import make_clips
from processes import ROOT, msrun_command
from tiny_models import make_older_release
from training_runs import assert_same, rows
from training_runs import t2v_command as flags

from opensora.train.checkpoint_folder import checkpoints, find_corruption

STEPS = 12
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
JOINT = ["--train_batch_size", 4, *"--max_image_size 32 --use_image_num 2 --use_img_from_vid".split()]
# Processes, flags and generation of the models.
LAYOUTS = {
    "single": (1, ["--train_batch_size", 4], "v1.3"),
    "ddp": (2, ["--train_batch_size", 2, "--use_parallel", "True", "--zero_stage", 2], "v1.3"),
    "sp": (2, ["--train_batch_size", 2, "--use_parallel", "True", "--sp_size", 2, "--train_sp_batch_size", 4], "v1.3"),
    "v1.1": (1, JOINT, "v1.1"),
    "v1.2": (1, JOINT, "v1.2"),
}


def start(folder: Path, layout: str, output: str) -> subprocess.Popen:
    workers, more, generation = LAYOUTS[layout]
    common = f"--max_train_steps {STEPS} --checkpointing_steps 3 --checkpoints_total_limit 2 \
        --resume_from_checkpoint True"
    argv = flags(folder, output, *common.split(), *more, generation=generation)
    command = (
        dict(args=[sys.executable, *argv], cwd=ROOT)
        if workers == 1
        else msrun_command(workers, folder / f"{output}-logs", *argv)
    )
    screen = open(folder / f"{output}.screen", "a")
    return subprocess.Popen(**command, stdout=screen, stderr=screen)


def wait_for_all(output: Path, pid: int) -> None:
    """Waits until all processes of the run have ended: msrun itself ends before its ranks have saved."""
    deadline = time.monotonic() + 120
    while left := [
        process
        for process in psutil.process_iter(["cmdline", "status"])
        if process.info["status"] != psutil.STATUS_ZOMBIE
        and process.pid != pid
        and str(output) in (process.info["cmdline"] or [])
    ]:
        assert time.monotonic() < deadline, f"orphans: {left}"
        time.sleep(0.1)


def interrupt(folder: Path, layout: str, output: str, longest: float, rng: random.Random) -> str:
    """Starts a run and sends a signal after up to `longest` seconds; returns its name, or that the run had finished."""
    process, number = start(folder, layout, output), rng.choice(SIGNALS)
    try:
        status = process.wait(rng.uniform(0, longest))
    except subprocess.TimeoutExpired:
        process.send_signal(number)
        status = process.wait(120)
        assert status != 0 or len(rows(folder / output)) == STEPS, "an interrupted run ended with 0"
    else:
        assert status == 0, (folder / f"{output}.screen").read_text()[-3000:]
        return "finished before the signal"
    wait_for_all(folder / output, process.pid)
    return number.name


def trial(folder: Path, layout: str, output: str, longest: float, rng: random.Random) -> list[str]:
    """A run that is interrupted one to three times and then resumed to its end; returns the signals."""
    happened, saved = [], 0
    for _ in range(rng.randint(1, 3)):
        happened.append(interrupt(folder, layout, output, longest, rng))
        found = (
            [path for path in checkpoints(folder / output) if find_corruption(path) is None]
            if (folder / output).exists()
            else []
        )
        newest = int(found[-1].name.split("-")[1]) if found else 0
        assert newest >= saved, f"checkpoint-{saved} existed, checkpoint-{newest} is the newest now"
        saved = newest
    process = start(folder, layout, output)
    assert process.wait(300) == 0, (folder / f"{output}.screen").read_text()[-3000:]
    wait_for_all(folder / output, process.pid)
    assert_same(folder / output / f"checkpoint-{STEPS}", folder / f"{layout}-reference" / f"checkpoint-{STEPS}")
    assert [row[0] for row in rows(folder / output)] == [str(step) for step in range(1, STEPS + 1)]
    return [name for name in happened if name.startswith("SIG")]


def interruptions(folder: Path, layout: str, wanted: int, seed: int) -> Counter:
    """Trials until `wanted` signals were sent; returns the number of each."""
    if not (folder / "release").exists():
        make_older_release(folder / "release")
        make_clips(folder / "data", videos=24, images=16, frames=9, size=(32, 32))
    rng, sent, begin = random.Random(seed), Counter(), time.monotonic()
    assert start(folder, layout, f"{layout}-reference").wait(300) == 0
    longest = time.monotonic() - begin
    while sum(sent.values()) < wanted:
        sent.update(trial(folder, layout, f"{layout}-{sum(sent.values())}", longest, rng))
        print(layout, dict(sent), flush=True)
    return sent


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layout", choices=LAYOUTS, default="single")
    parser.add_argument("--interruptions", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    interruptions(args.folder, args.layout, args.interruptions, args.seed)
