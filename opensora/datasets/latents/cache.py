"""Reads a latent cache. Nothing here imports MindSpore, because data workers use it.

The index file contains

    samples        (N, 2) int32: shard and entry of each sample of the data; -1 for samples that could not be read
    texts          (M, 32) uint8: the keys of the texts, sorted
    text_places    (M, 2) int32: shard and entry of each text

Shards are numbered in the order of `Manifest.files`. Tensors are read one at a time, and the index is memory-mapped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Union

import numpy as np
from tqdm import tqdm

from opensora.checkpoint.formats.safetensors import read_safetensors, write_safetensors
from opensora.checkpoint.lazy_tensor import ArrayTensor, FileTensor
from opensora.datasets.latents.manifest import Manifest
from opensora.datasets.latents.shards import Shard
from opensora.errors import UserError
from opensora.utils.files import checksum

OPEN_SHARDS = 64  # files that a process keeps open
KEY_LENGTH = 32  # hexadecimal digits
MISSING = -1
AGAIN = "delete it and run opensora encode again"


def text_key(text: str) -> str:
    """The key of a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:KEY_LENGTH]


class LatentCache:
    """A complete cache, opened for reading; pickled as its path.

    Args:
        folder: the `--output` of `opensora encode`.

    Raises:
        FileNotFoundError: the folder has no manifest.
        UserError: it is not complete, or damaged.
    """

    def __init__(self, folder: Union[str, Path]):
        self.folder = Path(folder)
        self.manifest = Manifest.read(self.folder)
        if self.manifest.samples is None:
            raise UserError(f"{folder}: opensora encode has not finished; run it again with the same flags")
        self.crops = int(self.manifest.encoding["--crops"])
        self._shards = list(self.manifest.files)
        self._open = lru_cache(OPEN_SHARDS)(read_safetensors)
        path = self.folder / self.manifest.index
        if not path.is_file():
            raise UserError(f"{path}: missing; run opensora encode again")
        try:
            tensors = read_safetensors(path)
            self._samples, self._text_places = (_mapped(tensors[name]) for name in ("samples", "text_places"))
            self._texts = _mapped(tensors["texts"]).reshape(-1).view(f"S{KEY_LENGTH}")
        except KeyError as error:
            raise UserError(f"{path}: has no tensor {error}; {AGAIN}") from error

    def __reduce__(self):
        return LatentCache, (self.folder,)

    def crop(self, sample: int, crop: int) -> dict[str, np.ndarray]:
        """`moments`, float32 (2 D or 4 D, t, h, w), and for the inpaint model `known_mask`, float32 (T,).

        Raises:
            UserError: the sample could not be read when the cache was made.
        """
        shard, entry = map(int, self._samples[sample])
        if shard == MISSING:
            raise UserError(f"sample {sample} could not be read when {self.folder} was made")
        tensors = self._open(self.folder / self._shards[shard])
        found = {"moments": tensors[f"{entry}.{crop}"].numpy().astype(np.float32, copy=False)}
        mask = tensors.get(f"{entry}.{crop}.mask")
        return found if mask is None else {**found, "known_mask": mask.numpy()}

    def text(self, text: str) -> np.ndarray:
        """The states of a text, float32 (L, width).

        Raises:
            UserError: the cache does not have the text.
        """
        key = text_key(text).encode()
        place = int(np.searchsorted(self._texts, key))
        if place == len(self._texts) or self._texts[place] != key:
            raise UserError(f"{self.folder} has no embedding of the text {text!r:.100}")
        shard, entry = map(int, self._text_places[place])
        return self._open(self.folder / self._shards[shard])[f"{entry}"].numpy().astype(np.float32, copy=False)

    def verify(self, rank: int = 0, world_size: int = 1) -> None:
        """Compares the files with their checksums; each process of a run reads its share of them.

        Raises:
            UserError: a file is missing or damaged.
        """
        names = [*self._shards, self.manifest.index][rank::world_size]
        paths = [self.folder / name for name in names]
        for path in paths:
            if not path.is_file():
                raise UserError(f"{path}: missing; run opensora encode again")
        total = sum(path.stat().st_size for path in paths)
        with tqdm(total=total, desc="latent cache", unit="B", unit_scale=True, delay=2, disable=rank > 0) as progress:
            for path in paths:
                if checksum(path) != self._expected(path.name):
                    raise UserError(f"{path}: damaged, its checksum is not that of the manifest; {AGAIN}")
                progress.update(path.stat().st_size)

    def _expected(self, name: str) -> str:
        """The SHA-256 of a file; that of the index is part of its name."""
        return self.manifest.files.get(name) or name.partition("-")[2].partition(".")[0]


def _mapped(tensor: FileTensor) -> np.ndarray:
    found = tensor.mapped()
    return tensor.numpy() if found is None else found


def write_index(folder: Path, samples: Iterable[str], latents: Sequence[Shard], texts: Sequence[Shard]) -> str:
    """Writes the index of a cache, unless it exists; returns its name.

    Args:
        samples: the keys of the samples of the data, in their order.
        latents, texts: the complete shards.
    """
    places = {entry["key"]: place for place, entry in _entries(latents, 0)}
    text_places = {entry["key"]: place for place, entry in _entries(texts, len(latents))}
    keys = sorted(text_places)
    nowhere = (MISSING, MISSING)
    tensors = {
        "samples": _pairs([places.get(key, nowhere) for key in samples]),
        "texts": np.frombuffer("".join(keys).encode(), np.uint8).reshape(-1, KEY_LENGTH),
        "text_places": _pairs([text_places[key] for key in keys]),
    }
    if not (tensors["samples"] >= 0).any():
        raise UserError(f"{folder}: no sample could be read; see the messages above")
    unnamed = folder / "index-new.safetensors"
    write_safetensors(unnamed, {name: ArrayTensor(array) for name, array in tensors.items()})
    path = folder / f"index-{checksum(unnamed)}.safetensors"
    unnamed.replace(path)
    return path.name


def _pairs(places: Sequence[tuple[int, int]]) -> np.ndarray:
    return np.array(places, np.int32).reshape(-1, 2)


def _entries(shards: Sequence[Shard], first: int) -> Iterable[tuple[tuple[int, int], Mapping]]:
    """The entries of the shards with their places, the last shard first: the first shard with a key counts."""
    for number, shard in reversed(list(enumerate(shards, first))):
        for entry_number, entry in enumerate(shard.entries):
            yield (number, entry_number), entry
