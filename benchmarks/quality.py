"""What saving calls of the transformer costs in quality, on the demo model: a table and an image.

    python benchmarks/quality.py [--count N] [--cache METHOD:THRESHOLD ...] [--lpips FILE] [--output FILE]

All methods make videos for the same prompts from the same noise, one prompt at a time. PSNR, SSIM and LPIPS compare
their frames with those of the run that calls the transformer in every step. The score is the fraction of videos that
match their prompt in everything (`opensora.demo.score`). Seconds are of denoising and decoding.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a fresh clone

from benchmarks.plot import Panel, log_log  # noqa: E402
from benchmarks.run import check_folder, markdown, use_cores  # noqa: E402
from opensora.config.acceleration import parse_cache  # noqa: E402
from opensora.config.command_line import CommandParser, run_main  # noqa: E402
from opensora.config.commands import DEMO_MODEL, DEMO_WORLD  # noqa: E402
from opensora.config.options import check_at_least_one  # noqa: E402

IMAGE = ROOT / "docs/images/step_caching.png"
CACHES = (
    *(f"easy:{threshold}" for threshold in (0.05, 0.1, 0.2, 0.4, 0.8)),
    *(f"first_block:{threshold}" for threshold in (0.3, 0.4, 0.5, 0.7)),
)
INTERVALS = ((0.0, 0.8), (0.2, 1.0))
GUIDANCE_SCALE, MAX_TOKENS, SEED = 4.0, 24, 2024
TICKS_OF_CALLS, TICKS_OF_PSNR = (1, 2, 3, 4, 5), (20, 25, 30, 35, 40, 50, 60)


@dataclass
class Method:
    """A way to make the videos, and what was measured."""

    name: str
    steps: int
    arguments: dict[str, Any] = field(default_factory=dict)  # of the pipeline's call
    videos: list[np.ndarray] = field(default_factory=list)  # uint8 (T, H, W, 3)
    calls: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def measure(methods: Sequence[Method], scenes: Sequence[Any], sample_method: str) -> None:
    """Makes the videos. For each prompt all methods run in turn, so that all see the same state of the machine."""
    from tqdm import tqdm

    from opensora.demo.scenes import WORLDS
    from opensora.pipelines import OpenSoraPipeline

    pipeline = OpenSoraPipeline.from_pretrained(
        DEMO_MODEL / "transformer",
        DEMO_MODEL / "vae",
        DEMO_MODEL / "text_encoder",
        sample_method=sample_method,
        prompt_template="{}",
        negative_prompt="",
    )

    world = WORLDS[DEMO_WORLD]

    def make(number: int, method: Method) -> np.ndarray:
        return pipeline(
            scenes[number].caption(),
            world.frames,
            world.side,
            world.side,
            num_inference_steps=method.steps,
            guidance_scale=GUIDANCE_SCALE,
            seed=(SEED, number),
            max_sequence_length=MAX_TOKENS,
            **method.arguments,
        )[0]

    for method in methods:  # loads, and compiles what is compiled
        make(0, method)
    for number in tqdm(range(len(scenes)), "prompts", unit="prompt"):
        for method in methods:
            start = time.perf_counter()
            method.videos.append(make(number, method))
            method.seconds.append(time.perf_counter() - start)
            method.calls.append(pipeline.model_calls)


def results(methods: Sequence[Method], scenes: Sequence[Any], lpips_file: Optional[Path]) -> list[dict[str, Any]]:
    """The figures of each method; those of quality against the first one."""
    from opensora.demo.score import accuracy, judge
    from opensora.metrics import psnr, ssim

    full, rows = methods[0], []
    for method in methods:
        scores = accuracy([judge(scene, video) for scene, video in zip(scenes, method.videos)])
        row: dict[str, Any] = {
            "method": method.name,
            "calls": float(np.mean(method.calls)),
            "fewer calls": float(np.mean(full.calls) / np.mean(method.calls)),
            "seconds": float(np.mean(method.seconds)),
            "speed-up": float(np.mean(full.seconds) / np.mean(method.seconds)),
            "score": scores["everything"],
        }
        if method is not full:
            pairs = [(as_frames(a), as_frames(b)) for a, b in zip(full.videos, method.videos)]
            quality = [float(psnr(*pair).mean()) for pair in pairs]
            row.update(psnr=float(np.mean(quality)), least_psnr=min(quality))
            row["ssim"] = float(np.mean([ssim(*pair).mean() for pair in pairs]))
            if lpips_file:
                row["lpips"] = mean_lpips(pairs, lpips_file)
        rows.append(row)
    return rows


def as_frames(video: np.ndarray) -> np.ndarray:
    """uint8 (T, H, W, 3) -> (T, 3, H, W) in [0, 1]."""
    return video.transpose(0, 3, 1, 2) / 255


def mean_lpips(pairs: Sequence[tuple[np.ndarray, np.ndarray]], path: Path) -> float:
    from opensora.metrics import lpips
    from opensora.models.lpips import LPIPS

    network = LPIPS.load(path)
    return float(np.mean([lpips(*pair, network).mean() for pair in pairs]))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The figures in Markdown."""
    has_lpips = any("lpips" in row for row in rows)
    head = ["method", "calls", "fewer calls", "seconds", "speed-up", "PSNR, mean", "PSNR, least", "SSIM", "score"]
    lines = [[*head[:-1], "LPIPS", head[-1]] if has_lpips else head]
    for row in rows:
        line = [row["method"], f"{row['calls']:.1f}", f"{row['fewer calls']:.2f}x"]
        line += [f"{row['seconds']:.2f}", f"{row['speed-up']:.2f}x"]
        line += [f"{row['psnr']:.1f} dB", f"{row['least_psnr']:.1f} dB"] if "psnr" in row else ["", ""]
        line.append(f"{row['ssim']:.3f}" if "ssim" in row else "")
        if has_lpips:
            line.append(f"{row['lpips']:.3f}" if "lpips" in row else "")
        lines.append([*line, f"{row['score']:.0%}"])
    return markdown(lines)


def plot(rows: Sequence[dict[str, Any]]) -> Any:
    """PSNR against the saved calls, a curve for each method of step caching."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if "cache" in row["method"] and np.isfinite(row["psnr"]):
            name = row["method"].split(":")[0]
            curves.setdefault(name, []).append((row["fewer calls"], row["psnr"]))
    panel = Panel(
        "PSNR (dB) against the run without a cache",
        "times fewer calls of the transformer",
        TICKS_OF_CALLS,
        {name: sorted(points) for name, points in curves.items()},
        TICKS_OF_PSNR,
    )
    return log_log([panel])


def parse_args() -> argparse.Namespace:
    parser = CommandParser(description=__doc__)
    parser.add_argument(
        "--count", type=int, default=40, help="prompts, half of them held-out combinations; default: 40"
    )
    parser.add_argument("--steps", type=int, default=50, help="steps of the sampler")
    parser.add_argument("--sample_method", default="EulerAncestralDiscrete", help="the sampler")
    parser.add_argument("--cache", nargs="*", default=CACHES, help="caches to measure, as sample.py takes them")
    parser.add_argument("--lpips", type=Path, help="weights of LPIPS, as opensora evaluate takes them")
    parser.add_argument("--threads", type=int, default=2, help="cores to use")
    parser.add_argument("--output", type=Path, default=IMAGE, help="the image")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    check_at_least_one(args, "count", "steps", "threads")
    for cache in args.cache:
        parse_cache(cache)
    check_folder("--output", args.output)
    return args


def main() -> None:
    args = parse_args()
    use_cores(args.threads)
    from opensora.demo.scenes import WORLDS
    from opensora.demo.score import prompts

    scenes = prompts(args.count, SEED, WORLDS[DEMO_WORLD])
    methods = [Method("every step", args.steps)]
    methods += [Method(f"cache {cache}", args.steps, {"cache": cache}) for cache in args.cache]
    methods += [
        Method(f"guidance from {low:g} to {high:g}", args.steps, {"guidance_interval": (low, high)})
        for low, high in INTERVALS
    ]
    methods.append(Method(f"{args.steps // 2} steps", max(1, args.steps // 2)))
    measure(methods, scenes, args.sample_method)
    rows = results(methods, scenes, args.lpips)
    print(table(rows))
    plot(rows).save(args.output)
    print(f"\n{args.output}")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2), encoding="utf-8")


if __name__ == "__main__":
    run_main(main)
