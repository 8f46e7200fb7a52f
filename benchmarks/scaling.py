"""Seconds and memory of self-attention against the number of tokens, dense and skiparse: a table and an image.

    python benchmarks/scaling.py [--tokens N ...] [--output FILE]

One layer of the 2B width, float32, batch 1, with its projections and RoPE. Every point is measured in a separate
process; memory is the increase while the layer runs. Needs Linux.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a fresh clone

from benchmarks.cases import DIT_2B  # noqa: E402
from benchmarks.plot import Panel, log_log  # noqa: E402
from benchmarks.run import check_folder, check_repeat, markdown, use_cores  # noqa: E402
from benchmarks.worker import Worker  # noqa: E402
from opensora.config.command_line import CommandParser, run_main  # noqa: E402
from opensora.errors import UserError  # noqa: E402

BLOCKS = {"dense": 0, f"skiparse, n = {DIT_2B['sparse_n']}": 2}  # index of a transformer block with this attention
MULTIPLE = DIT_2B["sparse_n"] ** 2  # of the token count, so that skiparse needs no padding
IMAGE = ROOT / "docs/images/attention_scaling.png"


def measure(block: int, tokens: int, repeat: int) -> tuple[float, float]:
    """Median seconds, and bytes of memory."""
    with Worker(sys.executable, "benchmarks.attention_steps", str(block), str(tokens)) as worker:
        runs = [worker.run() for _ in range(repeat)]
        return (statistics.median(run["seconds"] for run in runs), runs[-1]["peak_bytes"] - worker.facts["ready_bytes"])


def table(tokens: list[int], points: dict[str, list[tuple[float, float]]]) -> str:
    head = ["tokens", *(f"{name}: {what}" for name in points for what in ("seconds", "memory"))]
    rows = [
        [
            f"{count:,}",
            *(text for curve in points.values() for text in (f"{curve[i][0]:.3g}", f"{curve[i][1] / 1e9:.3g} GB")),
        ]
        for i, count in enumerate(tokens)
    ]
    return markdown([head, *rows])


def plot(tokens: list[int], points: dict[str, list[tuple[float, float]]]):
    seconds = {name: [(count, point[0]) for count, point in zip(tokens, curve)] for name, curve in points.items()}
    memory = {name: [(count, point[1] / 1e9) for count, point in zip(tokens, curve)] for name, curve in points.items()}
    return log_log(
        [
            Panel("seconds of one attention layer", "tokens", tokens, seconds),
            Panel("memory it adds, GB", "tokens", tokens, memory),
        ]
    )


def parse_args() -> argparse.Namespace:
    parser = CommandParser(description=__doc__)
    parser.add_argument(
        "--tokens", type=int, nargs="+", default=[1024, 2048, 4096, 8192, 16384], help=f"multiples of {MULTIPLE}"
    )
    parser.add_argument("--repeat", type=int, default=3, help="timed runs of each point, after a warm-up run")
    parser.add_argument("--threads", type=int, default=2, help="cores to use")
    parser.add_argument("--output", type=Path, default=IMAGE, help="the image")
    args = parser.parse_args()
    for count in args.tokens:
        if count < 1 or count % MULTIPLE:
            raise UserError(f"--tokens {count} is not a multiple of {MULTIPLE}, which skiparse would pad it to")
    check_repeat(args.repeat)
    check_folder("--output", args.output)
    return args


def main() -> None:
    args = parse_args()
    use_cores(args.threads)
    tokens, points = sorted(args.tokens), {name: [] for name in BLOCKS}
    for count in tokens:
        for name, block in BLOCKS.items():
            points[name].append(measure(block, count, args.repeat))
            print(f"{count:,} tokens, {name}: {points[name][-1][0]:.3g} s", file=sys.stderr, flush=True)
    print(table(tokens, points))
    plot(tokens, points).save(args.output)
    print(f"\n{args.output}")


if __name__ == "__main__":
    run_main(main)
