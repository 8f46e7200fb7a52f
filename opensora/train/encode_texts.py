"""The texts of a latent cache: states of a text encoder, or copies of cached caption embeddings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar, Union

import numpy as np
from tqdm import tqdm

from opensora.datasets.latents.cache import text_key
from opensora.datasets.latents.shards import TEXTS, ShardWriter, complete_shards, exact_tensor
from opensora.datasets.t2v.dataset import T2VDataset
from opensora.datasets.t2v.text_embeddings import EMPTY_TEXT, load_embedding, read_origin
from opensora.device import Device
from opensora.models import MT5EncoderModel
from opensora.pipelines.text import embed_texts
from opensora.train.encode_options import EncodeOptions
from opensora.train.latent_cache import text_encoder_digest
from opensora.utils.folder_lock import check_free_space

Value = TypeVar("Value")


class TextSource(Protocol):
    """Where the states of the texts come from."""

    @property
    def description(self) -> Mapping[str, Any]:
        """The entry `text_encoder` of the manifest."""

    def encode(self, writer: ShardWriter) -> None:
        """Writes the states of this process's share of the texts, except those that earlier runs wrote."""


def text_source(options: EncodeOptions, dataset: T2VDataset, device: Device) -> TextSource:
    """The text encoder, or with --text_embed_cache the embeddings that --data names."""
    if options.data.text_embed_cache:
        return StoredEmbeddings(dataset, device)
    return TextEncoder(options, dataset, device)


class TextEncoder:
    """States of `options.text_encoder_name_1`, which is in memory during `encode` only."""

    def __init__(self, options: EncodeOptions, dataset: T2VDataset, device: Device):
        self.options, self.dataset, self.device = options, dataset, device
        self.path = options.text_encoder_name_1 or ""
        config = MT5EncoderModel.published_config(self.path, "--text_encoder_name_1")
        self.width = MT5EncoderModel.config_class.from_dict(config).to_dict()["d_model"]

    @property
    def description(self) -> Mapping[str, Any]:
        return {
            "digest": text_encoder_digest(self.path),
            "width": self.width,
            "knows_chinese": self.dataset.knows_chinese,
            "precision": self.device.precision,
        }

    def encode(self, writer: ShardWriter) -> None:
        texts = ((text, text) for number in range(len(self.dataset.index)) for text in self.dataset.texts(number))
        todo = own_texts(texts, writer.folder, self.device)
        if not todo:
            return
        tokenizer, length = self.dataset.tokenizer, self.options.data.model_max_length
        tokens = sum(min(tokenizer.count(text), length) for text in todo.values())
        if self.device.is_main:
            check_free_space(writer.folder, 4 * self.width * tokens * self.device.world_size)
        encoder = MT5EncoderModel.from_pretrained(self.path, dtype=self.device.dtype).set_train(False)
        batches = embed_texts(encoder, tokenizer, list(todo.values()), length, self.options.batch_size)
        rows = (row for batch in batches for row in zip(batch.states, batch.mask))
        for key, (states, mask) in zip(todo, progress(rows, len(todo), self.device)):
            tokens_only = np.ascontiguousarray(states[: mask.sum()])
            writer.add({"key": key}, {"": exact_tensor(tokens_only, self.device.precision)})
        writer.flush()


class StoredEmbeddings:
    """Embeddings of sample_text_embed.py, which `T2VDataset` has checked."""

    def __init__(self, dataset: T2VDataset, device: Device):
        self.dataset, self.device = dataset, device

    @property
    def description(self) -> Mapping[str, Any]:
        empty = self.dataset.index.sources[0].embeddings / EMPTY_TEXT
        origin = read_origin(empty)
        return {
            "digest": origin.encoder if origin else None,
            "width": load_embedding(empty)[0].shape[-1],
            "knows_chinese": False,  # captions are not cleaned
            "precision": "fp32",
        }

    def encode(self, writer: ShardWriter) -> None:
        numbers = range(len(self.dataset.index))
        files = (pair for number in numbers for pair in self.dataset.embeddings(number))
        todo = own_texts(files, writer.folder, self.device)
        if self.device.is_main:
            size = sum(Path(file).stat().st_size for file in todo.values())
            check_free_space(writer.folder, size * self.device.world_size)
        for key, file in progress(todo.items(), len(todo), self.device):
            states, mask = load_embedding(file)
            writer.add({"key": key}, {"": exact_tensor(states[0, : mask.sum()], "fp32")})
        writer.flush()


def own_texts(texts: Iterable[tuple[str, Value]], folder: Path, device: Device) -> dict[str, Value]:
    """The values of distinct texts by key: those of this process that no complete shard has.

    A text belongs to a process by its key, so that no two processes encode the same one.
    """
    done = {entry["key"] for shard in complete_shards(folder, TEXTS) for entry in shard.entries}
    found: dict[str, Value] = {}
    for text, value in texts:
        key = text_key(text)
        if int(key, 16) % device.world_size == device.rank and key not in done:
            found.setdefault(key, value)
    return found


def progress(items: Iterable[Value], total: int, device: Device) -> Union[Iterable[Value], tqdm]:
    """A progress bar of the first process."""
    return tqdm(items, "texts", total, unit="text", disable=not device.is_main)
