"""Text-to-video training samples: pixels and caption of annotated videos and images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Optional

import numpy as np

from opensora.datasets.broken import Quarantine, read_or_replace
from opensora.datasets.collate import PadAndStack
from opensora.datasets.sampler import group
from opensora.datasets.t2v.captions import add_quality_sentence, all_with_quality_sentence
from opensora.datasets.t2v.embedding_check import check_embeddings
from opensora.datasets.t2v.index import SampleIndex, open_index
from opensora.datasets.t2v.options import T2VDataOptions
from opensora.datasets.t2v.pixels import read_pixels
from opensora.datasets.t2v.selection import Shape
from opensora.datasets.t2v.text_cleaning import clean_caption
from opensora.datasets.t2v.text_embeddings import EMPTY_TEXT, find_embedding, load_embedding
from opensora.errors import UserError
from opensora.utils.logs import logger

RESIZED = "_resize_1080p.mp4"  # a smaller copy of a video beside it, which v1.1 preferred


class T2VDataset:
    """Samples by number. Reading changes no state, so any process may read any sample.

    Args:
        tokenizer: `opensora.models.text_encoder.tokenizer.Tokenizer` or similar; None with `text_embed_cache`.
        quiet: do not print the table of excluded samples; for all ranks but one.

    Raises:
        UserError: faulty annotations, no usable sample, or a data file without folders of embeddings.
        FileNotFoundError: an annotation file or the embedding of the empty text does not exist.
    """

    def __init__(self, options: T2VDataOptions, tokenizer: Any, quiet: bool = False):
        self.options, self.tokenizer = options, tokenizer
        self.index: SampleIndex = open_index(options)
        self.min_samples = options.min_samples
        notes = self._check_texts()
        if not len(self):
            remedy = "; --min_steps_per_size 0 uses sizes of few samples, too" if len(self.index) else ""
            raise UserError(
                f"{options.file}: no sample is left to train on: {self.index.explain_exclusions(self.min_samples)}"
                f"{remedy}"
            )
        self.quarantine = Quarantine(Path(options.cache_dir) / "broken_samples.tsv")
        if not quiet:
            logger.info("\n".join([self.index.table(self.min_samples), *notes]))
            if self.quarantine.names:
                logger.info(f"the samples listed in {self.quarantine.path} will be replaced by others")

    @property
    def buckets(self) -> list[np.ndarray]:
        """Sample numbers that may share a batch: those of one shape with `group_data`, otherwise all."""
        buckets = group(self.index.shape_of, self.min_samples)
        return buckets if self.options.group_data else [np.sort(np.concatenate(buckets))]

    def __len__(self) -> int:
        counts = self.index.shape_counts
        return int(counts[counts >= self.min_samples].sum())

    def collate(self, batch_size: int) -> PadAndStack:
        """The collate function for this dataset; batches of different sizes are padded to the configured maximum.

        Raises:
            UserError: a sample is larger than that maximum.
        """
        options = self.options
        size = None
        if batch_size > 1 and not options.group_data:
            size = Shape(options.num_frames, options.max_height, options.max_width)
            for shape, count in zip(self.index.shapes, self.index.shape_counts):
                if count >= self.min_samples and any(side > limit for side, limit in zip(shape, size)):
                    raise UserError(
                        f"{options.file}: has samples of {shape}, but without group_data batches are padded "
                        f"to num_frames, max_height and max_width, {size}: increase them"
                    )
        return PadAndStack(
            size,
            (options.ae_stride_t, options.ae_stride, options.ae_stride),
            (options.patch_size_t, options.patch_size, options.patch_size),
        )

    def item(self, index: int, rng: np.random.Generator) -> dict:
        """A sample, or a random other sample of its shape if it cannot be read.

        Returns:
            pixels: float32 (3, T, H, W) in [-1, 1].
            cond_mask: int32 (1, L).
            input_ids: int32 (1, L); with `text_embed_cache` instead cond, float32 (1, L, D).
            replaced: 1 if the sample was replaced by another, else 0.

        Raises:
            UserError: too many samples of this shape are broken.
        """

        def same_shape() -> np.ndarray:
            return np.flatnonzero(self.index.shape_of == self.index.shape_of[index])

        return read_or_replace(self._read, self.name, index, same_shape, rng, self.quarantine)

    def frames(self, index: int, rng: np.random.Generator) -> dict:
        """The part of a sample that the autoencoder encodes, such as `pixels`; raises whatever a reader raises."""
        record = self.index.record(index)
        return {"pixels": read_pixels(self._path(record), record, self.shape(index), self.options, rng)}

    def caption(self, index: int) -> str:
        """The first caption of a sample, without the sentences that training adds; it needs a tokenizer."""
        captions = self.index.record(index)["cap"]
        return self._clean(captions if isinstance(captions, str) else captions[0])

    def texts(self, index: int) -> Iterator[str]:
        """Every text that may be tokenized for a sample; it needs a tokenizer."""
        record = self.index.record(index)
        for caption in [record["cap"]] if isinstance(record["cap"], str) else record["cap"]:
            for text in all_with_quality_sentence(caption, record.get("aes"), "num_frames" in record):
                yield self._clean(text)
        yield from self._replacement_texts(record)

    def embeddings(self, index: int) -> Iterator[tuple[str, Path]]:
        """With `text_embed_cache`, the captions of a sample and the empty text, each with the file of its embedding.

        Captions without a usable embedding are left out.
        """
        record = self.index.record(index)
        root = self.index.sources[record["source"]].embeddings
        captions = [(None, record["cap"])] if isinstance(record["cap"], str) else enumerate(record["cap"])
        for number, caption in captions:
            with suppress(ValueError, OSError):
                yield caption, find_embedding(root, record["path"], number, caption)[0]
        yield "", root / EMPTY_TEXT

    def _read(self, index: int, rng: np.random.Generator) -> dict:
        text = self._text(self.index.record(index), rng)
        return {**self.frames(index, rng), **text}

    def _text(self, record: dict, rng: np.random.Generator) -> dict:
        """The caption, or what replaces it, for the text encoder or as its states."""
        caption, number = draw_caption(record, rng)
        if self.options.text_embed_cache:
            return self._embedding(record, caption, number, rng)
        ids, mask = self.tokenizer([self._final_text(record, caption, rng)], self.options.model_max_length)
        return {"input_ids": ids, "cond_mask": mask}

    def _final_text(self, record: dict, caption: str, rng: np.random.Generator) -> str:
        """The text that is tokenized, for a caption of the sample."""
        caption = add_quality_sentence(caption, record.get("aes"), "num_frames" in record, rng)
        caption = self._clean(caption)
        return caption if self._keeps_text(rng) else self._replacement_text(record, rng)

    def _clean(self, text: str) -> str:
        """The text as the published models got it: v1.0 and v1.1 cleaned the result once more."""
        text = clean_caption(text, self.knows_chinese)
        return clean_caption(text, self.knows_chinese) if self.options.is_older else text

    def _embedding(self, record: dict, caption: str, number: Optional[int], rng: np.random.Generator) -> dict:
        root = self.index.sources[record["source"]].embeddings
        file = find_embedding(root, record["path"], number, caption)[0] if self._keeps_text(rng) else root / EMPTY_TEXT
        states, mask = load_embedding(file)
        if mask.shape[1] != self.options.model_max_length:
            raise UserError(
                f"{file}: made with --model_max_length {mask.shape[1]}, but training uses "
                f"{self.options.model_max_length}"
            )
        return {"cond": states, "cond_mask": mask}

    def _keeps_text(self, rng: np.random.Generator) -> bool:
        return rng.random() >= self.options.dropped

    def _replacement_text(self, record: dict, rng: np.random.Generator) -> str:
        """Replaces a dropped caption (classifier-free guidance)."""
        return ""

    def _replacement_texts(self, record: dict) -> list[str]:
        """The possible results of `_replacement_text`."""
        return [""]

    @property
    def knows_chinese(self) -> bool:
        """Whether the text encoder has Chinese characters."""
        return self.tokenizer.knows_chinese

    def _check_texts(self) -> list[str]:
        """Returns notes to print; raises UserError or FileNotFoundError for unusable embeddings."""
        if (self.tokenizer is None) != self.options.text_embed_cache:
            raise UserError("give either a tokenizer or text_embed_cache")
        if not self.options.text_embed_cache:
            return []
        for source in self.index.sources:
            if source.embedding_root is None:
                raise UserError(
                    f"{self.options.file}: text_embed_cache requires `root,embedding_root,annotation.json` "
                    f"in every line; {source.annotation} has no embedding_root"
                )
        return check_embeddings(self.index, self.options.model_max_length)

    def shape(self, index: int) -> Shape:
        return self.index.shapes[self.index.shape_of[index]]

    def path(self, index: int) -> Path:
        """The media file of a sample."""
        return self._path(self.index.record(index))

    def _path(self, record: dict) -> Path:
        path = Path(self.index.sources[record["source"]].root) / record["path"]
        if self.options.video_data is not None and "num_frames" in record:
            resized = path.with_name(f"{path.stem}{RESIZED}")
            return resized if resized.is_file() else path
        return path

    def name(self, index: int) -> str:
        """The sample's name in the list of broken samples; several samples may share a file."""
        record = self.index.record(index)
        return f"{self._path(record)}@{record['start']}" if "start" in record else str(self._path(record))


def draw_caption(record: dict, rng: np.random.Generator) -> tuple[str, Optional[int]]:
    """The caption of a record and None, or a random one of its list of captions and its number."""
    if isinstance(record["cap"], str):
        return record["cap"], None
    number = int(rng.integers(len(record["cap"])))
    return record["cap"][number], number
