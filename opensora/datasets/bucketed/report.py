"""Reports how many samples each bucket gets, without training:

python -m opensora.datasets.bucketed.report CONFIG CSV [--output report.png]
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Optional

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from opensora.config.command_line import parse_flags, run_main
from opensora.config.commands import BucketReportOptions
from opensora.config.mmengine import check_fields, read_config_file
from opensora.datasets.bucketed.buckets import UNUSED, Buckets
from opensora.datasets.bucketed.table import read_table

MARGIN, LABEL, BARS, RATIOS, ROW, BAR = 24, 130, 420, 420, 34, 20  # pixels
TEXT, GRAY, BACKGROUND = (40, 44, 52), (150, 155, 165), (255, 255, 255)
IMAGES, VIDEOS, UNASSIGNED = (72, 133, 190), (222, 122, 62), (140, 140, 145)
WIDEST, TALLEST = 0.25, 4.0  # aspect ratios at the ends of the axis


def main(argv: Optional[Sequence[str]] = None) -> None:
    args = parse_flags(
        "Prints how many samples fall into which bucket, before any training.", (BucketReportOptions,), argv
    )
    from opensora.datasets.media import check_image_suffix, save_image

    if args.output:
        check_image_suffix(args.output)
    config = read_config_file(args.config)
    check_fields({**config, "config": args.config}, ["bucket_config"])
    buckets = Buckets(config.bucket_config)
    interval = (config.get("dataset") or {}).get("frame_interval", 1)
    shapes = read_table(args.csv, sizes=True).shapes
    assigned = buckets.assign(shapes, interval, config.get("seed", 42) + args.epoch)
    print(buckets.table(assigned))
    if args.output:
        save_image(args.output, draw_chart(buckets, assigned, Path(args.csv).name))


def draw_chart(buckets: Buckets, assigned: np.ndarray, title: str) -> np.ndarray:
    """uint8 (H, W, 3): one row per level, with a bar for its samples and a histogram of their aspect ratios."""
    rows = [
        (
            f"{level.resolution}, {level.frames} frame{'s' * (level.frames > 1)}",
            counts,
            IMAGES if level.frames == 1 else VIDEOS,
        )
        for level, counts in buckets.counts(assigned)
    ]
    unused = int((assigned == UNUSED).sum())
    width = 4 * MARGIN + LABEL + BARS + RATIOS
    image = Image.new("RGB", (width, 2 * MARGIN + (len(rows) + 4) * ROW), BACKGROUND)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size=14)
    left_bars, left_ratios = 2 * MARGIN + LABEL, 3 * MARGIN + LABEL + BARS
    draw.text((MARGIN, MARGIN), f"{title}: {len(assigned):,} samples", TEXT, ImageFont.load_default(size=18))
    top = MARGIN + ROW
    draw.text((left_bars, top), "samples", GRAY, font)
    draw.text((left_ratios, top), "height / width", GRAY, font)
    largest = max([unused, 1, *(sum(counts.values()) for _, counts, _ in rows)])
    top += ROW
    draw_ratio_axis(draw, font, left_ratios, top, top + ROW * len(rows))
    for label, counts, color in rows:
        draw_bar(draw, font, top, label, sum(counts.values()), largest, left_bars, color)
        for ratio, count in counts.items():
            place = left_ratios + RATIOS * axis_position(float(ratio))
            height = BAR * count / max(counts.values())
            draw.rectangle((place - 2, top + BAR - max(1, height), place + 2, top + BAR), fill=color)
        top += ROW
    draw_bar(draw, font, top, "in no bucket", unused, largest, left_bars, UNASSIGNED)
    return np.asarray(image)


def draw_bar(
    draw: ImageDraw.ImageDraw, font, top: int, label: str, count: int, largest: int, left: int, color: tuple
) -> None:
    """Draws a row's label, bar and number. The number is beside the bar, or inside if the bar is too long."""
    draw.text((MARGIN, top + 2), label, TEXT, font)
    length = round(BARS * count / largest)
    if count:
        draw.rectangle((left, top, left + max(1, length), top + BAR), fill=color)
    text = f"{count:,}"
    inside = length + 10 + draw.textlength(text, font) > BARS
    draw.text((left + (6 if inside else length + 6), top + 2), text, BACKGROUND if inside else TEXT, font)


def draw_ratio_axis(draw: ImageDraw.ImageDraw, font, left: int, top: int, bottom: int) -> None:
    for ratio, text in ((0.25, "1:4"), (0.5625, "9:16"), (1.0, "1:1"), (16 / 9, "16:9"), (4.0, "4:1")):
        place = left + RATIOS * axis_position(ratio)
        draw.line((place, top - 6, place, bottom), fill=(225, 225, 228))
        draw.text((place, bottom + 2), text, GRAY, font, anchor="ma")


def axis_position(ratio: float) -> float:
    """Position on a logarithmic axis: 0 for the widest, 1 for the tallest frames."""
    return float(np.log(ratio / WIDEST) / np.log(TALLEST / WIDEST))


if __name__ == "__main__":
    run_main(main)
