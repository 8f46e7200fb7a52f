"""The shards of a latent cache: safetensors files, each with a .json file that lists its entries.

Tensors are named after the number of their entry in the shard:

    latents    N.C         moments of crop C of sample N: (2 D, t, h, w), mean and log-variance of D latent channels;
                           for the inpaint model (4 D, t, h, w), followed by those of the conditioning frames
               N.C.mask    the mask of that crop, (T,), 1 for frames to generate; of the inpaint model only
    texts      N           states of text N without padding, (L, width)

A shard is complete if its .json file exists, which is written last.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from opensora.checkpoint.formats.safetensors import write_safetensors
from opensora.checkpoint.lazy_tensor import ArrayTensor, ConvertedTensor, LazyTensor
from opensora.errors import UserError
from opensora.utils.files import atomic_write, checksum, remove_abandoned
from opensora.utils.json_text import read_json
from opensora.utils.logs import logger

LATENTS, TEXTS = "latents", "texts"
SHARD_BYTES = 256 << 20  # a shard is closed when it has this many
SUFFIX = ".safetensors"


class Shard(NamedTuple):
    """A complete shard. Entries are dicts with `key`, and for samples with `signature` of the media file."""

    name: str
    sha256: str
    entries: list[dict]


class ShardWriter:
    """Writes the shards of one kind of one process; those that exist are kept.

    An entry is in memory until its shard is written. The shards depend on the order of the entries only.

    Raises:
        OSError: the disk is full. The shards written before are complete.
    """

    def __init__(self, folder: Path, kind: str, rank: int):
        self.folder, self.kind, self.rank = folder, kind, rank
        self._clear()

    def add(self, entry: Mapping, tensors: Mapping[str, LazyTensor]) -> None:
        """Adds an entry and its tensors, by the rest of their names: "" or ".C" as in the module docstring."""
        number = len(self._entries)
        self._entries.append(dict(entry))
        for name, tensor in tensors.items():
            self._tensors[f"{number}{name}"] = tensor
            self._bytes += tensor.nbytes
        if self._bytes >= SHARD_BYTES:
            self.flush()

    def flush(self) -> None:
        """Writes the entries that are not in a shard yet."""
        if not self._entries:
            return
        path = self._free_path()
        write_safetensors(path, self._tensors)
        content = {"sha256": checksum(path), "bytes": path.stat().st_size, "entries": self._entries}
        with atomic_write(path.with_suffix(".json")) as temporary:
            temporary.write_text(json.dumps(content), encoding="utf-8")
        self._clear()

    def _clear(self) -> None:
        self._entries: list[dict] = []
        self._tensors: dict[str, LazyTensor] = {}
        self._bytes = 0

    def _free_path(self) -> Path:
        number = 0
        while (path := self.folder / f"{self.kind}-{self.rank:04d}-{number:05d}{SUFFIX}").exists():
            number += 1
        return path


def complete_shards(folder: Path, kind: str) -> list[Shard]:
    """The complete shards of one kind, of all processes, by name."""
    shards = []
    for path in sorted(folder.glob(f"{kind}-*.json")):
        content = _read_list(path)
        shards.append(Shard(path.with_suffix(SUFFIX).name, content["sha256"], content["entries"]))
    return shards


def remove_incomplete(folder: Path) -> None:
    """Removes what killed processes left, and the lists of shards that are missing or truncated."""
    remove_abandoned(folder)
    for kind in (LATENTS, TEXTS):
        for path in folder.glob(f"{kind}-*{SUFFIX}"):
            if not path.with_suffix(".json").exists():
                path.unlink()
        for path in folder.glob(f"{kind}-*.json"):
            shard = path.with_suffix(SUFFIX)
            if not shard.exists() or shard.stat().st_size != _read_list(path)["bytes"]:
                logger.warning(f"{shard}: missing or truncated; its entries are encoded again")
                path.unlink()  # first: without it the shard is not complete
                shard.unlink(missing_ok=True)


def exact_tensor(values: np.ndarray, precision: str) -> LazyTensor:
    """float32 values in the 16-bit type that a model computed them in, if that is exact; otherwise in float32.

    Args:
        precision: of the model: fp32, fp16 or bf16.
    """
    tensor = ArrayTensor(values)
    if precision == "fp16":
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        return ArrayTensor(half) if np.array_equal(values, half) else tensor
    if precision == "bf16" and not (values.view(np.uint32) & 0xFFFF).any():
        return ConvertedTensor(tensor, "BF16")
    return tensor


def _read_list(path: Path) -> dict:
    content = read_json(path)
    if not isinstance(content, dict) or not {"sha256", "bytes", "entries"} <= set(content):
        raise UserError(f"{path}: damaged; delete it and run opensora encode again")
    return content
