"""Time and memory of the index of a large dataset: python benchmarks/dataset_index.py [--samples 2000000]

Prints one line per stage. Memory is the private memory of the process (RssAnon), without pages of mapped files.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a fresh clone

from opensora.config.command_line import CommandParser  # noqa: E402
from opensora.datasets.sampler import BatchSampler, group  # noqa: E402
from opensora.datasets.t2v.index import open_index  # noqa: E402
from opensora.datasets.t2v.options import T2VDataOptions  # noqa: E402


def write_annotation(path: Path, samples: int) -> None:
    sizes = ((720, 1280), (1080, 1920), (1280, 720), (1080, 1080))
    caption = "a long caption of the kind that language models write about videos. " * 6
    with open(path, "w", encoding="utf-8") as file:
        for number in range(samples):
            height, width = sizes[number % 4]
            item = {
                "path": f"{number % 1000:03}/{number}.mp4",
                "cap": f"{number}: {caption}",
                "fps": 24,
                "aes": 5.1,
                "num_frames": 90 + number % 300,
                "cut": [number % 50, 400],
                "resolution": {"height": height, "width": width},
            }
            file.write(("," if number else "[") + json.dumps(item))
        file.write("]")


def owned_megabytes() -> float:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


def main() -> None:
    parser = CommandParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=2_000_000, help="entries of the annotation file")
    samples = parser.parse_args().samples
    with tempfile.TemporaryDirectory() as folder:
        annotation = Path(folder) / "annotation.json"
        write_annotation(annotation, samples)
        (Path(folder) / "merge_data.txt").write_text(f"videos,{annotation}\n")
        options = T2VDataOptions(
            f"{folder}/merge_data.txt", num_frames=93, max_hxw=236544, group_data=True, cache_dir=folder
        )
        print(f"{samples:,} samples in {annotation.stat().st_size / 1e9:.2f} GB of json; {owned_megabytes():.0f} MB")
        for stage in ("built", "opened again"):
            start = time.perf_counter()
            index = open_index(options)
            print(f"{stage}: {time.perf_counter() - start:.2f} s, {len(index):,} kept, {owned_megabytes():.0f} MB")
        start = time.perf_counter()
        for number in np.random.default_rng(0).integers(len(index), size=200_000):
            index.record(int(number))
        print(f"200,000 records read: {time.perf_counter() - start:.2f} s, {owned_megabytes():.0f} MB")
        start = time.perf_counter()
        sampler = BatchSampler(group(index.shape_of), batch_size=1, rank=0, world_size=8)
        print(
            f"order of an epoch, {len(sampler):,} steps of 8 processes: {time.perf_counter() - start:.2f} s, "
            f"{owned_megabytes():.0f} MB"
        )


if __name__ == "__main__":
    main()
