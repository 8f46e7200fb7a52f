"""Curves on logarithmic axes, drawn with Pillow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Callable, Optional

from PIL import Image, ImageDraw, ImageFont

Point = tuple[float, float]

SUPERSAMPLING = 2  # drawn larger by this factor, then downsampled, for smooth edges
WIDTH, HEIGHT = 520, 380  # of a panel
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 50, 55  # margins of a panel
INK, GRID, PAPER = "#222222", "#e2e2e2", "#ffffff"
COLORS = ("#c0392b", "#2471a3", "#1e8449", "#b7950b")
MANTISSAS = (1, 2, 5)


@dataclass(frozen=True)
class Panel:
    """Curves by name; the axes have labels at the ticks, by default of y 1, 2 and 5 times powers of ten."""

    title: str
    x_label: str
    x_ticks: Sequence[float]
    curves: Mapping[str, Sequence[Point]]
    y_ticks: Optional[Sequence[float]] = None


class Pen:
    """Draws in pixels of the finished image."""

    def __init__(self, image: Image.Image, left: int):
        self.draw, self.left = ImageDraw.Draw(image), left

    def at(self, x: float, y: float) -> Point:
        return (x + self.left) * SUPERSAMPLING, y * SUPERSAMPLING

    def line(self, points: Sequence[Point], color: str, width: int) -> None:
        self.draw.line([self.at(*point) for point in points], color, width * SUPERSAMPLING, joint="curve")

    def dot(self, point: Point, color: str) -> None:
        (x, y), r = self.at(*point), 4 * SUPERSAMPLING
        self.draw.ellipse((x - r, y - r, x + r, y + r), color)

    def text(self, point: Point, text: str, anchor: str, size: int = 13, color: str = INK) -> None:
        self.draw.text(self.at(*point), text, color, ImageFont.load_default(size=size * SUPERSAMPLING), anchor=anchor)


def log_log(panels: Sequence[Panel]) -> Image.Image:
    """An image of the panels side by side."""
    image = Image.new("RGB", (len(panels) * WIDTH * SUPERSAMPLING, HEIGHT * SUPERSAMPLING), PAPER)
    for i, panel in enumerate(panels):
        draw_panel(Pen(image, i * WIDTH), panel)
    return image.resize((len(panels) * WIDTH, HEIGHT), Image.Resampling.LANCZOS)


def draw_panel(pen: Pen, panel: Panel) -> None:
    points = [point for curve in panel.curves.values() for point in curve]
    y_ticks = panel.y_ticks or ticks(min(y for _, y in points), max(y for _, y in points))
    x_of = scale(panel.x_ticks[0], panel.x_ticks[-1], LEFT + 15, WIDTH - RIGHT - 15)
    y_of = scale(y_ticks[0], y_ticks[-1], HEIGHT - BOTTOM, TOP)
    pen.text((WIDTH / 2, 18), panel.title, "mm", 16)
    pen.text((WIDTH / 2, HEIGHT - 16), panel.x_label, "mm")
    for y in y_ticks:
        pen.line([(LEFT, y_of(y)), (WIDTH - RIGHT, y_of(y))], GRID, 1)
        pen.text((LEFT - 8, y_of(y)), f"{y:g}", "rm")
    for x in panel.x_ticks:
        pen.line([(x_of(x), HEIGHT - BOTTOM), (x_of(x), TOP)], GRID, 1)
        pen.text((x_of(x), HEIGHT - BOTTOM + 14), f"{x:,g}", "mm")
    for i, (name, curve) in enumerate(panel.curves.items()):
        placed = [(x_of(x), y_of(y)) for x, y in curve]
        pen.line(placed, COLORS[i], 2)
        for point in placed:
            pen.dot(point, COLORS[i])
        pen.line([(LEFT + 15, TOP + 12 + 20 * i), (LEFT + 40, TOP + 12 + 20 * i)], COLORS[i], 2)
        pen.text((LEFT + 47, TOP + 12 + 20 * i), name, "lm", color=COLORS[i])


def scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """A logarithmic map from low to start and high to end; if low equals high, to the middle."""
    if low == high:
        return lambda value: (start + end) / 2
    return lambda value: start + (end - start) * math.log(value / low) / math.log(high / low)


def ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten, from the last tick up to `low` to the first one above `high`."""
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    known = [mantissa * 10.0**power for power in powers for mantissa in MANTISSAS]
    first = max(tick for tick in known if tick <= low)
    last = min(tick for tick in known if tick > high)
    return [tick for tick in known if first <= tick <= last]
