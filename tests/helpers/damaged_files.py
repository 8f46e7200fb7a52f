"""Reads damaged files by the thousand: what a reader may do with one is to read it, or to refuse it in one line.

    python tests/helpers/damaged_files.py --files 20000 [--readers safetensors,config.json] [--seed 0]

Small valid files are damaged at random (bits flipped, pieces cut out, moved and repeated, numbers set to extremes) and
read in processes of their own with a ceiling on memory and time. A new reader is one more entry of `READERS`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Callable, NamedTuple, Optional

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from torch_files import save_legacy, save_zip, tensor  # noqa: E402

SECONDS = 5.0  # that a file may take
MEGABYTES = 200  # that a file may take beyond what the process has
EXTREMES = [
    value.to_bytes(width, order)
    for width in (1, 2, 4, 8)
    for order in ("little", "big")
    for value in (0, 1, (1 << 8 * width) - 1, 1 << 8 * width - 1, (1 << 8 * width - 1) - 1)
]
TEXTS = [
    b"NaN",
    b"-1",
    b"1e999",
    b"null",
    b"true",
    b"9" * 40,
    b"[" * 3000,
    b'{"a":' * 3000,
    b"\xff",
    b"\xef\xbb\xbf",
    b'"',
    b",",
    b"\x00",
    b"\\ud800",
]


class Reader(NamedTuple):
    """`make(folder)` writes a valid file and returns its path; `read(path)` reads all of it.

    Other files in the folder stay as they are.
    """

    make: Callable[[Path], Path]
    read: Callable[[Path], object]


def _arrays() -> dict:
    return {f"block.{i}.weight": np.arange(6, dtype=np.float32).reshape(2, 3) + i for i in range(4)}


def _make_torch(save: Callable) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        content = {name: tensor(array) for name, array in _arrays().items()}
        save(folder / "x.pt", {"state_dict": content, "epoch": 3, "lr": 0.1, "names": ["a", ("b", None, True)]})
        return folder / "x.pt"

    return make


def _make_safetensors(folder: Path) -> Path:
    from opensora.checkpoint.formats.safetensors import write_safetensors
    from opensora.checkpoint.lazy_tensor import ArrayTensor

    write_safetensors(folder / "x.safetensors", {name: ArrayTensor(array) for name, array in _arrays().items()})
    return folder / "x.safetensors"


def _make_index(folder: Path) -> Path:
    shard = _make_safetensors(folder)
    index = folder / "model.safetensors.index.json"
    weight_map = {name: shard.name for name in _arrays()}
    index.write_text(json.dumps({"metadata": {"total_size": 96}, "weight_map": weight_map}))
    return index


def _make_mindspore(folder: Path) -> Path:
    """As mindspore.save_checkpoint writes it."""

    def field(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2, len(content)]) + content

    data = b""
    for name, array in _arrays().items():
        shape = b"".join(bytes([1 << 3, size]) for size in array.shape)
        data += field(1, field(1, name.encode()) + field(2, shape + field(2, b"Float32") + field(3, array.tobytes())))
    (folder / "x.ckpt").write_bytes(data)
    return folder / "x.ckpt"


def _make_config(folder: Path) -> Path:
    config = {
        "_class_name": "WFVAEModel",
        "latent_dim": 8,
        "base_channels": 128,
        "dropout": 0.0,
        "use_attention": True,
        "norm_type": "layernorm",
        "t_interpolation": "trilinear",
        "scale": [0.18215] * 8,
        "shift": [0.0] * 8,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return folder / "config.json"


def _read_state(path: Path) -> None:
    from opensora.checkpoint.files import open_state

    for value in open_state(path).values():
        value.numpy()
        for _ in value.iter_bytes():
            pass


def _read_config(path: Path) -> None:
    from opensora.models import WFVAEModel

    WFVAEModel.published_config(path)


def _make_spiece(folder: Path) -> Path:
    """A vocabulary of 20 pieces, as sentencepiece trains it."""
    from tiny_models import train_sentencepiece

    return train_sentencepiece(folder, [a + b for a in "abcdefgh" for b in "aeiou"], 20)


def _read_tokenizer(path: Path) -> None:
    from opensora.models.text_encoder.tokenizer import Tokenizer

    Tokenizer(path.parent)(["ab ba"], 8)


def _make_image(suffix: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        from opensora.datasets.media import save_image

        rows = np.arange(24, dtype=np.uint8)
        image = np.stack([*np.meshgrid(rows, rows * 9, indexing="ij"), rows[:, None] * rows], -1)
        save_image(folder / f"x{suffix}", image)
        return folder / f"x{suffix}"

    return make


def _read_image(path: Path) -> None:
    from opensora.datasets.media import read_image

    read_image(path)


def _make_video(suffix: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        from opensora.datasets.media import write_video

        frames = np.random.default_rng(0).integers(0, 255, (6, 16, 16, 3), dtype=np.uint8)
        with write_video(folder / f"x{suffix}", 8) as write:
            write(frames)
        return folder / f"x{suffix}"

    return make


def _read_video(path: Path) -> None:
    from opensora.datasets.media import VideoReader

    with VideoReader(path) as reader:
        reader.check()
        reader.read(list(range(len(reader))))


def _make_text(name: str, text: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_text(text, encoding="utf-8")
        return folder / name

    return make


CAPTIONS = json.dumps(
    [
        {
            "path": f"{i}.mp4",
            "cap": ["a cat", "a dog"],
            "num_frames": 30,
            "fps": 24.0,
            "resolution": {"height": 64, "width": 96},
            "aesthetic": 5.5,
        }
        for i in range(4)
    ],
    indent=1,
)


def _read_annotations(path: Path) -> None:
    from opensora.datasets.t2v.annotations import read_items

    list(read_items(path))


def _read_captions(path: Path) -> None:
    from opensora.sample.embedding_files import read_captions

    read_captions(path, path.parent)


def _read_data_file(path: Path) -> None:
    from opensora.datasets.t2v.annotations import read_data_file

    read_data_file(path)


def _make_data_file(folder: Path) -> Path:
    _make_text("annotation.json", CAPTIONS)(folder)
    lines = f"videos,{folder}/annotation.json\nvideos,embeddings,{folder}/annotation.json\n"
    return _make_text("data.txt", lines)(folder)


def _read_prompts(path: Path) -> None:
    from opensora.sample.prompt_files import read_prompts

    read_prompts([str(path)])


def _read_table(path: Path) -> None:
    from opensora.datasets.bucketed.table import read_table

    read_table(path, sizes=True)


def _read_training_log(path: Path) -> None:
    from opensora.train.log import Table

    Table(path, 4)


def _read_results(path: Path) -> None:
    from opensora.pipelines.reconstruct_folder import Results

    Results(path.parent, {"fps": 8})


def _make_state(folder: Path) -> Path:
    """The state.json of a checkpoint; its other files are as they were."""
    from opensora.train.checkpoint import save_checkpoint

    save_checkpoint(folder, 4, {}, {"sampler": {"epoch": 0}}, None, True)
    return folder / "checkpoint-4/state.json"


def _read_state_json(path: Path) -> None:
    from opensora.train.checkpoint import find_checkpoint

    find_checkpoint(path.parents[1], "latest")


READERS = {
    "torch zip": Reader(_make_torch(save_zip), _read_state),
    "torch legacy": Reader(_make_torch(save_legacy), _read_state),
    "safetensors": Reader(_make_safetensors, _read_state),
    "index.json": Reader(_make_index, _read_state),
    "mindspore": Reader(_make_mindspore, _read_state),
    "config.json": Reader(_make_config, _read_config),
    "spiece.model": Reader(_make_spiece, _read_tokenizer),
    **{suffix: Reader(_make_image(suffix), _read_image) for suffix in (".png", ".jpg")},
    **{suffix: Reader(_make_video(suffix), _read_video) for suffix in (".mp4", ".gif")},
    "annotations": Reader(_make_text("x.json", CAPTIONS), _read_annotations),
    "data file": Reader(_make_data_file, _read_data_file),
    "captions": Reader(_make_text("x.json", CAPTIONS), _read_captions),
    "prompts.txt": Reader(_make_text("x.txt", 'a cat\na dög, "red"\n\nfog over the sea\n'), _read_prompts),
    "prompts.csv": Reader(_make_text("x.csv", 'id,prompt\n1,a cat\n2,"a dog, red"\n'), _read_prompts),
    "video table": Reader(
        _make_text(
            "x.csv",
            'path,text,num_frames,height,width,fps\na.mp4,a cat,30,64,96,24.0\nb.mp4,"a dog, red",40,64,64,25\n',
        ),
        _read_table,
    ),
    "train_log.csv": Reader(
        _make_text("train_log.csv", "step,loss,grad_norm\n1,0.5,1.25\n2,0.25,\n3,0.125,2.0\n"), _read_training_log
    ),
    "state.json": Reader(_make_state, _read_state_json),
    "results": Reader(
        _make_text(
            "reconstruction.json",
            json.dumps({"settings": {"fps": 8}, "videos": {"a.mp4": {"psnr": 30.5, "ssim": 0.9}}}, indent=1),
        ),
        _read_results,
    ),
}


def damage(data: bytes, rng: np.random.Generator) -> bytes:
    """The data after one to three random changes; half of the time a single small one."""
    content = bytearray(data)
    is_small = rng.random() < 0.5
    for _ in range(1 if is_small else rng.integers(1, 4)):
        at = int(rng.integers(0, len(content) + 1)) if content else 0
        length = int(rng.integers(1, 1 + max(1, len(content) // int(rng.choice([2, 10, 100])))))
        piece = content[at : at + length]
        kind = rng.choice([0, 5, 6]) if is_small else rng.integers(8)
        if kind == 0 and content:
            content[min(at, len(content) - 1)] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            del content[at:]
        elif kind == 2:
            del content[at : at + length]
        elif kind == 3:
            content[at:at] = piece * int(rng.integers(1, 4))
        elif kind == 4:
            to = int(rng.integers(0, len(content) + 1))
            content[to : to + length] = piece
        elif kind == 5:
            value = EXTREMES[rng.integers(len(EXTREMES))]
            content[at : at + len(value)] = value
        elif kind == 6:
            value = TEXTS[rng.integers(len(TEXTS))]
            content[at : at + int(rng.integers(2)) * len(value)] = value
        else:
            content[at : at + length] = rng.bytes(length)
    return bytes(content)


def outcome(read: Callable[[Path], object], path: Path) -> tuple[str, Optional[str]]:
    """("read" or "refused", None), or the kind of fault and what was raised."""
    try:
        read(path)
    except (ValueError, OSError) as error:
        message = " ".join(str(error).split())  # as run_main prints it
        if len(message) > 2000:
            return "long message", message[:300]
        names = [place.name for place in (path, *path.parents[:2])]
        return ("refused", None) if any(name in message for name in names) else ("no name", message)
    except BaseException as error:
        return "other exception", f"{type(error).__name__}: {error!s:.300}"
    return "read", None


def _work(read: Callable[[Path], object], path: Path, data: bytes, seeds: range, results) -> None:
    """Reads the damaged files of some seeds; sends (seed, outcome, detail) after each. Runs in a process of its own."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (MEGABYTES << 20),) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.stderr = sys.stdout = open(os.devnull, "w")
    for seed in seeds:
        path.write_bytes(damage(data, np.random.default_rng(seed)))
        results.send((seed, *outcome(read, path)))


def run_reader(name: str, seeds: range) -> Iterator[tuple[int, str, Optional[str], float]]:
    """(seed, outcome, detail, seconds) of each damaged file, also of those that end the process or take too long."""
    make, read = READERS[name]
    with tempfile.TemporaryDirectory(prefix="damaged-") as folder:
        path = make(Path(folder))
        data = path.read_bytes()
        read(path)  # what is whole is read, and what reading imports is there before the processes are forked
        while seeds:
            for result in _run_until_fault(read, path, data, seeds):
                yield result
                seeds = seeds[1:]


def _run_until_fault(read: Callable[[Path], object], path: Path, data: bytes, seeds: range) -> Iterator[tuple]:
    """The results of a process, which ends with its seeds, with a crash or with a file that takes too long."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(read, path, data, seeds, sender), daemon=True)
    process.start()
    sender.close()
    try:
        for seed in seeds:
            start = time.perf_counter()
            if not receiver.poll(SECONDS):
                yield seed, "too slow", None, SECONDS
                return
            try:
                yield (*receiver.recv(), time.perf_counter() - start)
            except EOFError:
                process.join()
                yield seed, "crash", f"exit status {process.exitcode}", time.perf_counter() - start
                return
    finally:
        process.kill()
        process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description="Reads damaged files; says what was read, refused and at fault.")
    parser.add_argument("--files", type=int, default=20_000, help="of all readers together")
    parser.add_argument("--readers", default=",".join(READERS), help="names, separated by commas")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    names = args.readers.split(",")
    count, faults = args.files // len(names), 0
    for name in names:
        tally, slowest, start = {}, 0.0, time.perf_counter()
        for seed, result, detail, seconds in run_reader(name, range(args.seed, args.seed + count)):
            tally[result] = tally.get(result, 0) + 1
            slowest = max(slowest, seconds if sum(tally.values()) > 1 else 0.0)
            if result not in ("read", "refused"):
                faults += 1
                print(f"FAULT {name}, seed {seed}: {result}: {detail}", flush=True)
        counts = ", ".join(f"{number} {result}" for result, number in tally.items())
        print(f"{name}: {counts}; slowest {slowest:.2f} s, all {time.perf_counter() - start:.0f} s", flush=True)
    sys.exit(faults > 0)


if __name__ == "__main__":
    main()
