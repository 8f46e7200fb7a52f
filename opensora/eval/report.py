"""Prints tables of metrics."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


def print_table(rows: Mapping[str, Mapping[str, float]]) -> None:
    """Prints one line per video, then the mean over videos. `rows`: video -> {metric: value}, at least one."""
    metrics = list(next(iter(rows.values())))
    width = max(len(name) for name in (*rows, f"mean of {len(rows)}"))
    print(" ".join([f"{'video':{width}}", *(f"{metric:>9}" for metric in metrics)]))
    means = {metric: float(np.mean([row[metric] for row in rows.values()])) for metric in metrics}
    for name, row in {**rows, f"mean of {len(rows)}": means}.items():
        print(" ".join([f"{name:{width}}", *(f"{row[metric]:9.4f}" for metric in metrics)]))


def print_skipped(skipped: Mapping[str, str]) -> None:
    """Prints the skipped files. `skipped`: video -> reason."""
    if skipped:
        print(f"skipped {len(skipped)}:")
    for name, reason in skipped.items():
        print(f"  {name}: {reason}")
