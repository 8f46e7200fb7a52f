"""The curves of an evaluation, drawn with Pillow: a panel for each metric.

With several folders, a panel shows the value of each folder in the order given. With one folder, it shows the values of
all videos from the lowest to the highest.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from opensora.utils.files import atomic_write

if TYPE_CHECKING:
    from opensora.eval.run import FolderResult

WIDTH, HEIGHT, MARGIN = 420, 260, 50  # of a panel in pixels
COLUMNS = 3
INK, GRID, PAPER, CURVE = "#222222", "#dddddd", "#ffffff", "#2471a3"
SHARPNESS = 2  # drawn larger by this factor, then reduced, for smooth lines


def draw_curves(results: Sequence[FolderResult], path: Path) -> None:
    """Writes an image with a panel for each metric."""
    panels = {metric: (label, values) for metric, (label, values) in _panels(results).items() if values}
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    image = Image.new("RGB", (columns * WIDTH * SHARPNESS, rows * HEIGHT * SHARPNESS), PAPER)
    for number, (metric, (label, values)) in enumerate(panels.items()):
        _draw_panel(ImageDraw.Draw(image), number % columns * WIDTH, number // columns * HEIGHT, metric, label, values)
    with atomic_write(path) as temporary:
        image.resize((columns * WIDTH, rows * HEIGHT), Image.Resampling.LANCZOS).save(temporary)


def _panels(results: Sequence[FolderResult]) -> dict[str, tuple[str, list[float]]]:
    """The label of the horizontal axis and the values of each metric."""
    metrics = dict.fromkeys(metric for result in results for metric in result.values)
    if len(results) > 1:
        names = [Path(result.folder).name for result in results]
        label = f"{names[0]}, ... {names[-1]}" if len(names) > 2 else f"{names[0]}, {names[1]}"
        return {metric: (label, [r.values[metric] for r in results if metric in r.values]) for metric in metrics}
    videos = results[0].videos.values()
    per_video = {metric: sorted(row[metric] for row in videos if metric in row) for metric in metrics}
    return {
        metric: ("videos, sorted", values) if values else ("all videos", [results[0].values[metric]])
        for metric, values in per_video.items()
    }


def tick_labels(levels: Sequence[float]) -> list[str]:
    """The levels with as few digits as tell them apart, but at least three."""
    for digits in range(3, 8):
        labels = [f"{level:.{digits}g}" for level in levels]
        if len(set(labels)) == len(set(levels)):
            break
    return labels


def _draw_panel(draw: ImageDraw.ImageDraw, left: int, top: int, title: str, label: str, values: list[float]) -> None:
    low, high = min(values), max(values)
    if low == high:
        low, high = low - 0.5, high + 0.5

    def at(x: float, y: float) -> tuple[float, float]:
        return (left + x) * SHARPNESS, (top + y) * SHARPNESS

    def height_of(value: float) -> float:
        return HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * (value - low) / (high - low)

    def place(index: int, value: float) -> tuple[float, float]:
        x = MARGIN + (WIDTH - 2 * MARGIN) * (index / (len(values) - 1) if len(values) > 1 else 0.5)
        return at(x, height_of(value))

    def text(x: float, y: float, content: str, anchor: str, size: int = 12) -> None:
        draw.text(at(x, y), content, INK, ImageFont.load_default(size=size * SHARPNESS), anchor=anchor)

    levels = [low, (low + high) / 2, high]
    for value, tick in zip(levels, tick_labels(levels)):
        y = height_of(value)
        draw.line([at(MARGIN, y), at(WIDTH - MARGIN, y)], GRID, SHARPNESS)
        text(MARGIN - 6, y, tick, "rm")
    points = [place(index, value) for index, value in enumerate(values)]
    if len(points) > 1:
        draw.line(points, CURVE, 2 * SHARPNESS, joint="curve")
    for x, y in points if len(points) <= 50 else []:
        draw.ellipse((x - 3 * SHARPNESS, y - 3 * SHARPNESS, x + 3 * SHARPNESS, y + 3 * SHARPNESS), CURVE)
    text(WIDTH / 2, 22, title, "mm", 15)
    text(WIDTH / 2, HEIGHT - 18, label, "mm")
