"""The log of a run: lines on stderr, `train_log.csv` and TensorBoard events."""

from __future__ import annotations

import csv
import io
import math
import os
import resource
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Optional, Union

import mindspore as ms
import numpy as np
from tensorboardX import SummaryWriter

from opensora.ops.backend import on_cpu
from opensora.train.checkpoint_folder import free_name
from opensora.utils.files import atomic_write
from opensora.utils.logs import logger

TABLE, VALIDATION = "train_log.csv", "result_val.log"


class TrainingLog:
    """Writes to stderr, `train_log.csv`, `result_val.log` and TensorBoard event files; one process has it.

    A resumed run continues the table after the step of its checkpoint; later and corrupt rows are removed.
    """

    def __init__(self, output_dir: Union[str, Path], first_step: int, total_steps: int):
        self.output_dir = Path(output_dir)
        self.total_steps = total_steps
        self.first_step, self.start = first_step, time.perf_counter()
        self.table = Table(self.output_dir / TABLE, first_step)
        self.since_shown: list[Mapping[str, Optional[float]]] = []
        self.events = SummaryWriter(str(self.output_dir / "tensorboard"), purge_step=first_step + 1)

    def step(self, step: int, values: Mapping[str, Optional[float]], show: bool) -> None:
        """Logs the values of an optimizer step; None for values that do not exist yet.

        Args:
            show: print the means since the last printed line.
        """
        self.table.add(step, values)
        for name, value in values.items():
            if value is not None and math.isfinite(value):
                self.events.add_scalar(f"train/{name}", value, step)
        self.since_shown.append(values)
        if show:
            self.events.flush()
            means = {name: _mean([row[name] for row in self.since_shown]) for name in values}
            self.since_shown = []
            seconds = (time.perf_counter() - self.start) / (step - self.first_step) * (self.total_steps - step)
            shown = " | ".join(name if mean is None else f"{name} {mean:.4g}" for name, mean in means.items())
            logger.info(
                f"step {step}/{self.total_steps} | {shown} | {peak_memory() / 1e9:.2f} GB | "
                f"{timedelta(seconds=round(seconds))} left"
            )

    def validation(self, step: int, metrics: Mapping[str, float], images: Mapping[str, np.ndarray]) -> None:
        """Logs metrics on held-out data, and images uint8 (H, W, 3)."""
        text = " | ".join(f"{name} {value:.6g}" for name, value in metrics.items())
        with open(self.output_dir / VALIDATION, "a") as file:
            file.write(f"step {step} | {text}\n")
        for name, value in metrics.items():
            self.events.add_scalar(f"validation/{name}", value, step)
        for name, image in images.items():
            self.events.add_image(name, image, step, dataformats="HWC")
        self.events.flush()
        logger.info(f"validation at step {step} | {text}")

    def close(self) -> None:
        self.events.close()


def peak_memory() -> int:
    """Peak memory in bytes: of the device, or of the process on a CPU."""
    if on_cpu():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return ms.runtime.max_memory_allocated()


class Table:
    """A csv file with a row for each step; a value that does not exist yet is an empty cell.

    The run that resumes after `last_step` removes the rows of later steps, and corrupt rows, which it lists on stderr.
    The table of another run (`last_step` is 0) and a file with a corrupt first line are renamed.
    """

    def __init__(self, path: Path, last_step: int):
        self.path = path
        self.columns: list[str] = []
        if not path.exists() or not path.stat().st_size:
            return
        header, *lines = io.StringIO(path.read_bytes().decode("utf-8", "replace"), newline="\n")
        columns = header.strip().split(",")
        if columns[0] != "step" or not header.endswith("\n") or (last_step == 0 and lines):
            reason = "is of another run" if columns[0] == "step" and lines else "begins with a corrupt line"
            aside = free_name(path)
            os.replace(path, aside)
            logger.warning(f"{path} {reason}; it was renamed to {aside.name}")
            return
        rows = [_parse_row(line, columns) for line in lines]
        corrupt = [number for number, row in enumerate(rows, 2) if row is None]
        if corrupt:
            shown = ", ".join(map(str, corrupt[:10])) + (", ..." if len(corrupt) > 10 else "")
            logger.warning(f"{path}: removed {len(corrupt)} corrupt lines ({shown})")
        self.columns = columns
        self._rewrite([row for row in rows if row is not None and int(row["step"]) <= last_step])

    def add(self, step: int, values: Mapping[str, Optional[float]]) -> None:
        row = {"step": step, **{name: "" if value is None else repr(value) for name, value in values.items()}}
        if not self.columns:
            self.columns = list(row)
            self._rewrite([row])
            return
        new = [name for name in row if name not in self.columns]
        if new:  # such as after --print_losses was added
            with open(self.path, newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            self.columns += new
            self._rewrite([*rows, row])
            return
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            file.write(self._text([row]))

    def _rewrite(self, rows: Sequence[Mapping]) -> None:
        header = dict(zip(self.columns, self.columns))
        with atomic_write(self.path) as temporary:
            temporary.write_bytes(self._text([header, *rows]).encode())

    def _text(self, rows: Sequence[Mapping]) -> str:
        text = io.StringIO(newline="")
        csv.DictWriter(text, self.columns, restval="").writerows(rows)
        return text.getvalue()


def _parse_row(line: str, columns: Sequence[str]) -> Optional[dict[str, str]]:
    """A line of the table; None if it is corrupt: incomplete, or with values that are not numbers."""
    try:
        (cells,) = csv.reader([line])
        int(cells[0])
        for cell in cells[1:]:
            float(cell or "nan")
    except (ValueError, IndexError, csv.Error):
        return None
    return dict(zip(columns, cells)) if len(cells) == len(columns) and line.endswith("\n") else None


def _mean(values: Sequence[Optional[float]]) -> Optional[float]:
    """The mean of the values that exist, or None."""
    existing = [value for value in values if value is not None]
    return float(np.mean(existing)) if existing else None
