"""Seconds and memory of typical steps of the models, compared with the machine's peak rates and with PyTorch.

    python benchmarks/run.py [--case NAME ...] [--repeat N] [--json FILE] [--torch PYTHON]

Every case runs in a separate process for each framework, and the two take turns. Both have the same inputs and the
same random weights, and their results are compared. Everything is float32. Needs Linux.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Optional

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a fresh clone

from benchmarks.cases import CASES  # noqa: E402
from benchmarks.worker import Worker  # noqa: E402
from opensora.config.command_line import CommandParser, run_main  # noqa: E402
from opensora.errors import UserError  # noqa: E402

TOLERANCE = 1e-3  # difference of two float32 results, relative to the largest element


def measure(name: str, ours: Sequence[str], torch: Optional[str], repeat: int) -> dict[str, Any]:
    """Timings of a case. `ours` are flags of the MindSpore worker, `torch` is the Python that has PyTorch."""
    commands = {"mindspore": (sys.executable, "benchmarks.mindspore_steps", name, *ours)}
    if torch:
        commands["torch"] = (torch, "benchmarks.torch_steps", name)
    with ExitStack() as stack:
        sides = {side: stack.enter_context(Worker(*command)) for side, command in commands.items()}
        if torch:
            check_alike(name, *sides.values())
        runs = [{side: worker.run() for side, worker in sides.items()} for _ in range(repeat)]
    facts = sides["mindspore"].facts
    return {
        "title": CASES[name].title,
        **{key: facts[key] for key in ("flops", "bytes", "parameters")},
        **{side: summary(worker, [run[side] for run in runs]) for side, worker in sides.items()},
    }


def check_alike(name: str, ours: Worker, theirs: Worker) -> None:
    """Raises UserError if the two models differ, since their times are not comparable then."""
    counts = [worker.facts["parameters"] for worker in (ours, theirs)]
    if counts[0] != counts[1]:
        raise UserError(f"{name}: {counts[0]:,} parameters, in PyTorch {counts[1]:,}: not the same model")
    a, b = (np.array(worker.first["result"]) for worker in (ours, theirs))
    difference = np.abs(a - b).max() / np.abs(b).max()
    if not difference < TOLERANCE:
        raise UserError(f"{name}: results differ from PyTorch's by {difference:.1e} of the largest: one is wrong")


def summary(worker: Worker, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    seconds = [run["seconds"] for run in runs]
    return {
        "version": worker.facts["version"],
        "first_seconds": worker.first["seconds"],
        "seconds": seconds,
        "median": statistics.median(seconds),
        "min": min(seconds),
        "max": max(seconds),
        "peak_bytes": runs[-1]["peak_bytes"],
    }


def roofline(case: dict[str, Any], machine: dict[str, Any]) -> dict[str, float]:
    """Rates of the median run, as fractions of the peak GEMM and copy rates (Williams et al. 2009)."""
    seconds = case["mindspore"]["median"]
    flops, moved = case["flops"] / seconds, case["bytes"] / seconds
    shares = flops / machine["gemm_flops_per_second"], moved / machine["copy_bytes_per_second"]
    return {
        "flops_per_second": flops,
        "bytes_per_second": moved,
        "gemm_share": shares[0],
        "copy_share": shares[1],
        "roof_share": max(shares),
    }


def time_table(cases: dict[str, dict]) -> str:
    sides = [side for side in ("mindspore", "torch") if side in next(iter(cases.values()))]
    head, rows = ["case"], [[case["title"]] for case in cases.values()]
    for side in sides:
        head += [f"{side}: seconds", "min ... max", "peak memory"]
        for row, case in zip(rows, cases.values()):
            values = case[side]
            row += [
                f"{values['median']:.3g}",
                f"{values['min']:.3g} ... {values['max']:.3g}",
                f"{values['peak_bytes'] / 1e9:.2f} GB",
            ]
    if "torch" in sides:
        head.append("seconds / torch's")
        for row, case in zip(rows, cases.values()):
            row.append(f"{case['mindspore']['median'] / case['torch']['median']:.2f}")
    return markdown([head, *rows])


def roofline_table(cases: dict[str, dict]) -> str:
    head = ["case", "GFLOP", "GB", "GFLOP/s", "of GEMM rate", "GB/s", "of copy rate", "of the roof"]
    rows = []
    for case in cases.values():
        roof = case["roofline"]
        rows.append(
            [
                case["title"],
                billions(case["flops"]),
                billions(case["bytes"]),
                billions(roof["flops_per_second"]),
                f"{roof['gemm_share']:.1%}",
                billions(roof["bytes_per_second"]),
                f"{roof['copy_share']:.1%}",
                f"{roof['roof_share']:.1%}",
            ]
        )
    return markdown([head, *rows])


def billions(value: float) -> str:
    value /= 1e9
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table whose first line is the header; all columns except the first are right-aligned."""
    head, *rows = lines
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] + ["---:"] * (len(head) - 1), *rows])


def machine_rates() -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.machine"]
    measured = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
    return {**json.loads(measured.stdout), "load_average": os.getloadavg()}


def machine_line(machine: dict[str, Any]) -> str:
    return (
        f"{machine['processor']}, {machine['cores']} cores in use: "
        f"{machine['gemm_flops_per_second'] / 1e9:.0f} GFLOP/s (float32 GEMM), "
        f"{machine['copy_bytes_per_second'] / 1e9:.1f} GB/s (copy)"
    )


def use_cores(count: int) -> None:
    """Limits this process and its children to `count` cores; the frameworks use as many threads."""
    cores = sorted(os.sched_getaffinity(0))
    if not 1 <= count <= len(cores):
        raise UserError(f"--threads {count}: this machine has {len(cores)} cores; choose 1 to {len(cores)}")
    os.sched_setaffinity(0, cores[:count])


def check_torch(python: Optional[str]) -> None:
    if python and subprocess.run([python, "-c", "import torch"], stderr=subprocess.DEVNULL).returncode:
        raise UserError(f"--torch {python}: this Python has no torch; install it there, or leave --torch out")


def check_repeat(count: int) -> None:
    if count < 1:
        raise UserError(f"--repeat {count}: at least one run has to be timed")


def check_folder(flag: str, path: Path) -> None:
    if not path.parent.is_dir():
        raise UserError(f"{flag} {path}: there is no folder {path.parent}; make it first")


def parse_args() -> argparse.Namespace:
    parser = CommandParser(description=__doc__)
    parser.add_argument("--case", nargs="+", choices=tuple(CASES), default=list(CASES), help="default: all")
    parser.add_argument("--device", default="CPU", help="MindSpore device; memory and peak rates are the host's")
    parser.add_argument("--mode", type=int, choices=(0, 1), default=1, help="0: graph mode, 1: PyNative mode")
    parser.add_argument("--repeat", type=int, default=5, help="timed runs of each case, after a warm-up run")
    parser.add_argument("--threads", type=int, default=2, help="cores to use")
    parser.add_argument("--json", type=Path, help="also write all figures to this file")
    parser.add_argument(
        "--torch",
        metavar="PYTHON",
        default=sys.executable if importlib.util.find_spec("torch") else None,
        help="compare with the PyTorch of this Python; default: the current one, if it has torch",
    )
    args = parser.parse_args()
    check_repeat(args.repeat)
    if args.json:
        check_folder("--json", args.json)
    return args


def main() -> None:
    args = parse_args()
    use_cores(args.threads)
    check_torch(args.torch)
    machine = machine_rates()
    print(machine_line(machine), flush=True)
    ours = ("--device", args.device, "--mode", str(args.mode), "--precision", "fp32")
    cases = {}
    for name in args.case:
        case = cases[name] = measure(name, ours, args.torch, args.repeat)
        case["roofline"] = roofline(case, machine)
        print(f"{name}: {case['mindspore']['median']:.3g} s", file=sys.stderr, flush=True)
    print("", time_table(cases), "", roofline_table(cases), sep="\n")
    if args.json:
        settings = {"device": args.device, "mode": args.mode, "repeat": args.repeat}
        args.json.write_text(
            json.dumps({"machine": machine, "settings": settings, "cases": cases}, indent=2) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    run_main(main)
