"""Time and memory of `sample.py` with weights of the published sizes, for several limits of memory.

    python tools/make_full_size_release.py --output_dir DIR
    python benchmarks/full_size.py --weights DIR [--memory none 8GB ...] [--size 17x256x256 ...] [-- FLAGS OF sample.py]

Every run is one process, started without any of the weights in the page cache (`--warm` leaves them there), and in a
cgroup of the given size if this machine permits it. Random weights take the same time as trained ones. Needs Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Optional

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a fresh clone

from benchmarks.process_memory import Usage, can_limit, watch  # noqa: E402
from benchmarks.run import check_folder, machine_line, machine_rates, markdown, use_cores  # noqa: E402
from opensora.config.command_line import CommandParser, run_main  # noqa: E402
from opensora.errors import UserError  # noqa: E402

PROMPT = "A paper boat drifts down a rain-filled gutter"  # as in README.md
FOLDERS = {
    "model_path": "LanguageBind/Open-Sora-Plan-v1.3.0/any93x640x640",
    "ae_path": "LanguageBind/Open-Sora-Plan-v1.3.0/vae",
    "text_encoder_name_1": "google/mt5-xxl",
}
NO_LIMIT = "none"
DROP_CACHES = Path("/proc/sys/vm/drop_caches")
STAGES = ("load", "encode", "step", "decode")
STAGE_TIME = re.compile(rf"\b({'|'.join(STAGES)}) ([\d.]+) s")
PLANNED_PEAK = re.compile(r"planned peak ([\d.]+) GB")
FIRST_STEP = re.compile(r"denoising:.* [1-9]\d*/\d+ \[")  # a progress bar with a complete step
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".ckpt")
UNKNOWN = "-"


@dataclass
class Result:
    """One run of sample.py: seconds, and bytes of memory; None for figures that the log does not have."""

    title: str
    stages: dict[str, float]
    first_step: Optional[float]
    planned: Optional[float]
    usage: Usage

    @classmethod
    def of(cls, title: str, usage: Usage) -> Result:
        stages: dict[str, float] = {}
        for _, line in usage.lines:
            if line.startswith("time: "):
                stages.update({stage: float(seconds) for stage, seconds in STAGE_TIME.findall(line)})
        planned = [float(found[1]) * 1e9 for _, line in usage.lines if (found := PLANNED_PEAK.search(line))]
        steps = [seconds for seconds, line in usage.lines if FIRST_STEP.search(line)]
        return cls(title, stages, steps[0] if steps else None, planned[-1] if planned else None, usage)


def command(
    weights: Path, size: Sequence[int], steps: int, memory: str, flags: Sequence[str], output: str
) -> list[str]:
    """The published command, with `--memory` unless that is `none`."""
    folders = [word for flag, folder in FOLDERS.items() for word in (f"--{flag}", str(weights / folder))]
    frames, height, width = map(str, size)
    shape = ["--num_frames", frames, "--height", height, "--width", width]
    rest = ["--rescale_betas_zero_snr", "--num_sampling_steps", str(steps), "--save_img_path", output, *flags]
    limit = [] if memory == NO_LIMIT else ["--memory", memory]
    return [sys.executable, "opensora/sample/sample.py", *folders, "--text_prompt", PROMPT, *shape, *rest, *limit]


def weight_files(weights: Path) -> list[Path]:
    """The files of weights. Raises FileNotFoundError for a missing folder."""
    files = []
    for folder in FOLDERS.values():
        if not (weights / folder / "config.json").is_file():
            raise FileNotFoundError(
                f"{weights / folder}: no config.json; python tools/make_full_size_release.py --output_dir DIR makes "
                f"such weights, and --weights names that DIR"
            )
        files += [path for path in sorted((weights / folder).iterdir()) if path.suffix in WEIGHT_SUFFIXES]
    return files


def drop_cache(files: Sequence[Path]) -> None:
    """Removes files from the page cache: all files of the machine if permitted, otherwise these."""
    os.sync()  # only written pages can be dropped
    try:
        DROP_CACHES.write_text("3", encoding="ascii")
    except OSError:
        for path in files:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def read_seconds(files: Sequence[Path]) -> float:
    """Seconds to read all files with `cat`."""
    start = time.perf_counter()
    with open("/dev/null", "wb") as nowhere:
        subprocess.run(["cat", *map(str, files)], stdout=nowhere, check=True)
    return time.perf_counter() - start


def table(results: Sequence[Result], cat: float) -> str:
    head = ["run", "load", "encode", "step", "decode", "whole", "first step", "first step / cat"]
    head += ["planned peak", "measured peak", "measured / planned", "anonymous", "file pages", "read", "result"]
    rows = []
    for result in results:
        usage = result.usage
        rows.append(
            [
                result.title,
                *(seconds(result.stages.get(stage)) for stage in STAGES),
                seconds(usage.seconds),
                seconds(result.first_step),
                ratio(result.first_step, cat),
                gigabytes(result.planned),
                gigabytes(usage.resident),
                ratio(usage.resident, result.planned),
                gigabytes(usage.anonymous),
                gigabytes(usage.file),
                gigabytes(usage.read),
                usage.failure() or "complete",
            ]
        )
    return markdown([head, *rows])


def seconds(value: Optional[float]) -> str:
    return UNKNOWN if value is None else f"{value:.1f} s"


def gigabytes(value: Optional[float]) -> str:
    return UNKNOWN if value is None else f"{value / 1e9:.2f} GB"


def ratio(value: Optional[float], base: Optional[float]) -> str:
    return f"{value / base:.2f}" if value is not None and base else UNKNOWN


def frames_and_size(text: str) -> tuple[int, int, int]:
    """FRAMESxHEIGHTxWIDTH; ValueError for other texts."""
    frames, height, width = map(int, text.split("x"))
    return frames, height, width


def memory_limit(text: str) -> Optional[float]:
    """Bytes of a limit such as 8GB; None for `none`. Raises UserError for other texts."""
    if text == NO_LIMIT:
        return None
    with suppress(ValueError):
        limit = float(text.upper().removesuffix("GB")) * 1e9
        if text.upper().endswith("GB") and limit > 0:
            return limit
    raise UserError(f"--memory {text}: should be a size such as 8GB, or {NO_LIMIT}")


def parse_args() -> argparse.Namespace:
    parser = CommandParser(description=__doc__)
    parser.add_argument("--weights", type=Path, default=Path(), help="folder that holds LanguageBind/ and google/")
    parser.add_argument(
        "--memory",
        nargs="+",
        default=["8GB", "16GB", "24GB"],
        help=f"values of the flag --memory of sample.py, and limits of the cgroup; {NO_LIMIT}: neither",
    )
    parser.add_argument(
        "--size",
        nargs="+",
        type=frames_and_size,
        metavar="FRAMESxHEIGHTxWIDTH",
        default=[(17, 256, 256), (1, 256, 256)],
        help="sizes of the videos; default: 17x256x256 1x256x256",
    )
    parser.add_argument("--steps", type=int, default=2, help="steps of the sampler")
    parser.add_argument("--threads", type=int, default=2, help="cores to use")
    parser.add_argument("--warm", action="store_true", help="leave the weights in the page cache before runs and cat")
    parser.add_argument("--json", type=Path, help="also write all figures to this file")
    parser.add_argument("flags", nargs="*", help="further flags of sample.py, after --")
    args = parser.parse_args()
    for text in args.memory:
        memory_limit(text)
    if args.json:
        check_folder("--json", args.json)
    return args


def main() -> None:
    args = parse_args()
    files = weight_files(args.weights.resolve())
    use_cores(args.threads)
    machine = machine_rates()
    total = sum(path.stat().st_size for path in files)
    if not args.warm:
        drop_cache(files)
    cat = read_seconds(files)
    print(machine_line(machine))
    print(f"{total / 1e9:.2f} GB of weights: cat reads them in {cat:.1f} s, {total / cat / 1e9:.2f} GB/s", flush=True)
    if not can_limit():
        print("no cgroup can be created here: memory is not limited, only measured", flush=True)
    results = []
    for size in args.size:
        for memory in args.memory:
            title = f"{'x'.join(map(str, size))}, {memory}"
            if not args.warm:
                drop_cache(files)
            with tempfile.TemporaryDirectory() as output:
                words = command(args.weights.resolve(), size, args.steps, memory, args.flags, output)
                results.append(Result.of(title, watch(words, ROOT, memory_limit(memory))))
            usage = results[-1].usage
            print(f"{title}: {usage.seconds:.1f} s, {usage.failure() or 'complete'}", file=sys.stderr, flush=True)
    print("", table(results, cat), sep="\n")
    if args.json:
        settings = {"steps": args.steps, "warm": args.warm, "flags": args.flags}
        weights = {"bytes": total, "cat_seconds": cat}
        figures = {"machine": machine, "settings": settings, "weights": weights, "runs": [asdict(r) for r in results]}
        args.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_main(main)
