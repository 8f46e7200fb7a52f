"""Training steps of the demo model from pixels and from a latent cache: python benchmarks/latent_cache.py

Makes clips with tools/demo/make_data.py and a cache of them, then trains in turn and prints one line per run: the
median time of a step without the first ones, and the share of it that the step waits for data. One data worker reads;
the flags of the training are those of scripts/demo/train_demo.sh.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a fresh clone

from opensora.config.command_line import CommandParser  # noqa: E402
from opensora.config.commands import DEMO_MODEL  # noqa: E402

BATCH = 16
WARM_UP = 3  # steps, the first of which compile
DATA = "--num_frames 17 --force_resolution --max_height 64 --max_width 64 --hw_stride 16 --train_fps 8 --group_data \
    --model_max_length 24 --dataloader_num_workers 1 --device CPU"
TRAINING = "--mode 0 --sparse1d True --sparse_n 4 --prediction_type v_prediction --rescale_betas_zero_snr"
MODELS = ("--ae_path", f"{DEMO_MODEL}/vae", "--text_encoder_name_1", f"{DEMO_MODEL}/text_encoder")


def run(*command, **variables: str) -> float:
    """Runs a command of the project with these environment variables; returns its seconds."""
    start = time.perf_counter()
    environment = {**os.environ, **variables, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, *map(str, command)], check=True, capture_output=True, cwd=ROOT, env=environment)
    return time.perf_counter() - start


def step_times(folder: Path, output: str, steps: int, flags: Sequence[str]) -> tuple[float, float]:
    """Trains; returns the median seconds of a step and the mean share of waiting for data."""
    schedule = f"--max_train_steps {steps} --train_batch_size {BATCH} --output_dir {folder / output}".split()
    model = ("--pretrained", DEMO_MODEL / "transformer")
    data = ("--data", folder / "data/train.txt", "--cache_dir", folder / "cache", *DATA.split())
    command = ("-m", "opensora.cli", "train-t2v", *data, *TRAINING.split(), *schedule, *model, *flags)
    run(*command, OMP_WAIT_POLICY="ACTIVE")
    with open(folder / output / "train_log.csv", newline="") as file:
        rows = list(csv.DictReader(file))[WARM_UP:]
    seconds = [BATCH / float(row["samples_per_second"]) for row in rows]
    return float(np.median(seconds)), float(np.mean([float(row["data_wait"]) for row in rows]))


def main() -> None:
    parser = CommandParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=4 * BATCH, help="clips to train on, at least 64")
    parser.add_argument("--steps", type=int, default=20, help="training steps of a run")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each kind, in turn")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        counts = f"--clips {args.clips} --pictures 1 --details 1 --held_out 1".split()
        run("tools/demo/make_data.py", "--output_dir", folder / "data", *counts)
        data = ("--data", folder / "data/train.txt", "--cache_dir", folder / "cache", *DATA.split())
        seconds = run("-m", "opensora.cli", "encode", *data, *MODELS, "--output", folder / "latents")
        size = sum(path.stat().st_size for path in (folder / "latents").iterdir())
        print(f"opensora encode: {args.clips} clips in {seconds:.1f} s, {size / 1e6:.2f} MB", flush=True)
        for number in range(args.rounds):
            for kind, flags in (("pixels", MODELS), ("latents", ("--latent_cache", str(folder / "latents")))):
                step, wait = step_times(folder, f"{kind}{number}", args.steps, flags)
                print(f"{kind:8} {step:.3f} s per step, {wait:.1%} of it waiting for data", flush=True)


if __name__ == "__main__":
    main()
