"""Shows before any training what falls into which bucket:

python -m opensora.datasets.bucketed.report CONFIG CSV [--output picture.png]
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Optional

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from opensora.config.commands import BucketReportOptions
from opensora.config.mmengine import check_fields, read_config_file
from opensora.datasets.bucketed.buckets import UNUSED, Buckets
from opensora.datasets.bucketed.table import read_table
from opensora.utils.cli import parse_flags, run_main

MARGIN, LABEL, BARS, RATIOS, ROW, BAR = 24, 130, 420, 420, 34, 20  # pixels
INK, PALE, BACK = (40, 44, 52), (150, 155, 165), (255, 255, 255)
IMAGES, VIDEOS, LEFT_OUT = (72, 133, 190), (222, 122, 62), (140, 140, 145)
WIDEST, TALLEST = 0.25, 4.0  # ratios at the ends of the scale


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
    assigned = buckets.assign(*read_table(args.csv, sizes=True).shapes.T, interval, config.get("seed", 42) + args.epoch)
    print(buckets.table(assigned))
    if args.output:
        save_image(args.output, picture(buckets, assigned, Path(args.csv).name))


def picture(buckets: Buckets, assigned: np.ndarray, title: str) -> np.ndarray:
    """uint8 (H, W, 3): a row for each resolution and number of frames, with a bar of its samples and their ratios."""
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
    image = Image.new("RGB", (width, 2 * MARGIN + (len(rows) + 4) * ROW), BACK)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size=14)
    left_bars, left_ratios = 2 * MARGIN + LABEL, 3 * MARGIN + LABEL + BARS
    draw.text((MARGIN, MARGIN), f"{title}: {len(assigned):,} samples", INK, ImageFont.load_default(size=18))
    top = MARGIN + ROW
    draw.text((left_bars, top), "samples", PALE, font)
    draw.text((left_ratios, top), "height / width", PALE, font)
    largest = max([unused, 1, *(sum(counts.values()) for _, counts, _ in rows)])
    top += ROW
    ratio_ticks(draw, font, left_ratios, top, top + ROW * len(rows))
    for label, counts, color in rows:
        bar(draw, font, top, label, sum(counts.values()), largest, left_bars, color)
        for ratio, count in counts.items():
            place = left_ratios + RATIOS * position(float(ratio))
            height = BAR * count / max(counts.values())
            draw.rectangle((place - 2, top + BAR - max(1, height), place + 2, top + BAR), fill=color)
        top += ROW
    bar(draw, font, top, "in no bucket", unused, largest, left_bars, LEFT_OUT)
    return np.asarray(image)


def bar(
    draw: ImageDraw.ImageDraw, font, top: int, label: str, count: int, largest: int, left: int, color: tuple
) -> None:
    """A row's label, bar and number; the number stands beside the bar, or in it where that is long."""
    draw.text((MARGIN, top + 2), label, INK, font)
    length = round(BARS * count / largest)
    if count:
        draw.rectangle((left, top, left + max(1, length), top + BAR), fill=color)
    text = f"{count:,}"
    inside = length + 10 + draw.textlength(text, font) > BARS
    draw.text((left + (6 if inside else length + 6), top + 2), text, BACK if inside else INK, font)


def ratio_ticks(draw: ImageDraw.ImageDraw, font, left: int, top: int, bottom: int) -> None:
    for ratio, text in ((0.25, "1:4"), (0.5625, "9:16"), (1.0, "1:1"), (16 / 9, "16:9"), (4.0, "4:1")):
        place = left + RATIOS * position(ratio)
        draw.line((place, top - 6, place, bottom), fill=(225, 225, 228))
        draw.text((place, bottom + 2), text, PALE, font, anchor="ma")


def position(ratio: float) -> float:
    """Of a ratio on a logarithmic scale, 0 for the widest and 1 for the tallest frames."""
    return float(np.log(ratio / WIDEST) / np.log(TALLEST / WIDEST))


if __name__ == "__main__":
    run_main(main)
