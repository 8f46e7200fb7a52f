"""What a run tells: a line on the screen, a row of a table, a point of a curve."""
from __future__ import annotations

import csv
import math
import resource
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Mapping, Union

import mindspore as ms
import numpy as np
from tensorboardX import SummaryWriter

from opensora.utils.files import atomic_write

TABLE, VALIDATION = "train_log.csv", "result_val.log"


class TrainingLog:
    """Written by one process: the screen, `train_log.csv`, `result_val.log` and TensorBoard's events.

    A resumed run goes on with the table after dropping the rows that lie behind its checkpoint.
    """

    def __init__(self, output_dir: Union[str, Path], first_step: int, total_steps: int):
        self.output_dir = Path(output_dir)
        self.total_steps = total_steps
        self.first_step, self.start = first_step, time.perf_counter()
        _keep_until(self.output_dir / TABLE, first_step)
        self.since_shown: list[Mapping[str, float]] = []
        self.events = SummaryWriter(str(self.output_dir / "tensorboard"), purge_step=first_step + 1)

    def step(self, step: int, values: Mapping[str, float], show: bool) -> None:
        """The values of an optimizer step, NaN where there is none yet; `show`: on the screen, too, as means."""
        path = self.output_dir / TABLE
        is_new = not path.exists()
        with open(path, "a", newline="") as file:
            writer = csv.writer(file)
            if is_new:
                writer.writerow(["step", *values])
            writer.writerow([step, *(repr(value) for value in values.values())])
        for name, value in values.items():
            if math.isfinite(value):
                self.events.add_scalar(f"train/{name}", value, step)
        self.since_shown.append(values)
        if show:
            self.events.flush()
            values = {name: float(np.mean([row[name] for row in self.since_shown])) for name in values}
            self.since_shown = []
            seconds = (time.perf_counter() - self.start) / (step - self.first_step) * (self.total_steps - step)
            shown = " | ".join(f"{name} {value:.4g}" for name, value in values.items())
            print(f"step {step}/{self.total_steps} | {shown} | {peak_memory() / 1e9:.2f} GB | "
                  f"{timedelta(seconds=round(seconds))} left", file=sys.stderr, flush=True)

    def validation(self, step: int, values: Mapping[str, float], pictures: Mapping[str, np.ndarray]) -> None:
        """Results on held-out data; pictures are uint8 (H, W, 3)."""
        text = " | ".join(f"{name} {value:.6g}" for name, value in values.items())
        with open(self.output_dir / VALIDATION, "a") as file:
            file.write(f"step {step} | {text}\n")
        for name, value in values.items():
            self.events.add_scalar(f"validation/{name}", value, step)
        for name, picture in pictures.items():
            self.events.add_image(name, picture, step, dataformats="HWC")
        self.events.flush()
        print(f"validation at step {step} | {text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        self.events.close()


def peak_memory() -> int:
    """Bytes: of the device, or of the process where that is the host."""
    if ms.get_context("device_target") == "CPU":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return ms.runtime.max_memory_allocated()


def _keep_until(path: Path, step: int) -> None:
    """Drops the rows behind `step`, and a last one that a killed run left unfinished."""
    if not path.exists():
        return
    lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    kept = [line for line in lines[1:] if int(line.split(",")[0]) <= step]
    with atomic_write(path) as temporary:
        temporary.write_text("".join([*lines[:1], *kept]))
