"""What `opensora encode` reads: the crops of all samples, in a fixed order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import Any, Union

import numpy as np

from opensora.datasets.broken import try_read
from opensora.datasets.latents.cache import KEY_LENGTH
from opensora.datasets.masks import condition_pixels
from opensora.datasets.sampler import BatchRequest, Sampler
from opensora.datasets.t2v.dataset import T2VDataset
from opensora.datasets.t2v.probing import Signature, signature

Crop = tuple[int, int]  # number of the sample, number of its crop


def sample_key(dataset: T2VDataset, number: int) -> str:
    """Identifies a sample, whatever its number: its file, segment, crop and shape."""
    record = dataset.index.record(number)
    parts = [record.get(name) for name in ("crop", "start", "num_frames", "fps")]
    text = json.dumps([dataset.name(number), *parts, dataset.shape(number)])
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:KEY_LENGTH]


def media_signature(dataset: T2VDataset, number: int) -> Signature:
    """Changes when the sample's file changes; None if there is no file."""
    return signature(dataset.path(number))


class Clips:
    """A dataset of the crops: `item((sample, crop), rng)` is a dict of arrays, or why the sample cannot be read.

    The dict has `pixels` float32 (3, T, H, W), and for the inpaint model `known_mask` (T,) and `known`, the
    conditioning frames as pixels.

    Args:
        add_noise: see `condition_pixels`.
    """

    def __init__(self, dataset: T2VDataset, add_noise: bool):
        self.dataset, self.add_noise = dataset, add_noise

    def item(self, index: Crop, rng: np.random.Generator) -> Union[dict, str]:
        sample, reason = try_read(self.dataset.name(index[0]), partial(self._read, index[0], rng))
        return str(reason) if sample is None else sample

    def _read(self, number: int, rng: np.random.Generator) -> dict:
        sample = self.dataset.frames(number, rng)
        if "known_mask" in sample:
            masks = sample["known_mask"].reshape(1, 1, -1, 1, 1)
            known = condition_pixels(sample["pixels"][None], masks, [rng] if self.add_noise else None)
            sample["known"] = known[0]
        return sample


def collate(items: Sequence) -> dict[str, Any]:
    return {"clips": list(items)}


class CropOrder(Sampler):
    """The crops of samples, in batches of one shape.

    The random choices of a crop depend on the seed, the sample's key and the crop's number only.

    Args:
        samples: (number, key) of the samples; those of one shape follow each other.
        shape_of: the shape of each sample, see `SampleIndex`.
    """

    def __init__(
        self, samples: Sequence[tuple[int, str]], shape_of: np.ndarray, crops: int, batch_size: int, seed: int
    ):
        self.samples, self.shape_of, self.crops = samples, shape_of, crops
        self.batch_size, self.seed = batch_size, seed

    def upcoming(self) -> Iterator[BatchRequest]:
        for _, group in groupby(self.samples, lambda sample: self.shape_of[sample[0]]):
            crops = [(number, crop, key) for number, key in group for crop in range(self.crops)]
            for first in range(0, len(crops), self.batch_size):
                batch = crops[first : first + self.batch_size]
                seeds = [[self.seed, crop, int(key, 16)] for _, crop, key in batch]
                yield BatchRequest([(number, crop) for number, crop, _ in batch], np.arange(len(batch)), seeds)

    def advance(self) -> None:
        pass
