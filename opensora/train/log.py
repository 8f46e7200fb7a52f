"""What a run tells: a line on the screen, a row of a table, a point of a curve."""

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

from opensora.train.checkpoint import free_name
from opensora.utils.files import atomic_write
from opensora.utils.logs import logger

TABLE, VALIDATION = "train_log.csv", "result_val.log"


class TrainingLog:
    """Written by one process: the screen, `train_log.csv`, `result_val.log` and TensorBoard's events.

    A resumed run continues the table, without the rows of later steps than its checkpoint's and without damaged rows.
    """

    def __init__(self, output_dir: Union[str, Path], first_step: int, total_steps: int):
        self.output_dir = Path(output_dir)
        self.total_steps = total_steps
        self.first_step, self.start = first_step, time.perf_counter()
        self.table = Table(self.output_dir / TABLE, first_step)
        self.since_shown: list[Mapping[str, Optional[float]]] = []
        self.events = SummaryWriter(str(self.output_dir / "tensorboard"), purge_step=first_step + 1)

    def step(self, step: int, values: Mapping[str, Optional[float]], show: bool) -> None:
        """The values of an optimizer step, None for those that do not exist yet; `show`: their means since the last
        line go to the screen."""
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
        logger.info(f"validation at step {step} | {text}")

    def close(self) -> None:
        self.events.close()


def peak_memory() -> int:
    """Bytes: of the device, or of the process where that is the host."""
    if ms.get_context("device_target") == "CPU":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return ms.runtime.max_memory_allocated()


class Table:
    """A csv file with a row for each step; a value that does not exist yet is an empty cell.

    The run that resumes after `last_step` drops the rows of later steps, and damaged rows, which it names on stderr. A
    table of another run (`last_step` is 0) and a file whose first line is damaged are renamed.
    """

    def __init__(self, path: Path, last_step: int):
        self.path, self.columns = path, None
        if not path.exists() or not path.stat().st_size:
            return
        header, *lines = io.StringIO(path.read_bytes().decode("utf-8", "replace"), newline="\n")
        columns = header.strip().split(",")
        if columns[0] != "step" or not header.endswith("\n") or (last_step == 0 and lines):
            reason = "is of another run" if columns[0] == "step" and lines else "begins with a damaged line"
            aside = free_name(path)
            os.replace(path, aside)
            logger.warning(f"{path} {reason}; it was renamed to {aside.name}")
            return
        rows = [_parse_row(line, columns) for line in lines]
        damaged = [number for number, row in enumerate(rows, 2) if row is None]
        if damaged:
            shown = ", ".join(map(str, damaged[:10])) + (", ..." if len(damaged) > 10 else "")
            logger.warning(f"{path}: left out {len(damaged)} damaged lines ({shown})")
        self.columns = columns
        self._rewrite([row for row in rows if row is not None and int(row["step"]) <= last_step])

    def add(self, step: int, values: Mapping[str, Optional[float]]) -> None:
        row = {"step": step, **{name: "" if value is None else repr(value) for name, value in values.items()}}
        if self.columns is None:
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
    """A line of the table, None if it is damaged: an incomplete one, or one with something else than numbers."""
    try:
        (cells,) = csv.reader([line])
        int(cells[0])
        for cell in cells[1:]:
            float(cell or "nan")
    except (ValueError, IndexError, csv.Error):
        return None
    return dict(zip(columns, cells)) if len(cells) == len(columns) and line.endswith("\n") else None


def _mean(values: Sequence[Optional[float]]) -> Optional[float]:
    """Of those that exist."""
    existing = [value for value in values if value is not None]
    return float(np.mean(existing)) if existing else None
