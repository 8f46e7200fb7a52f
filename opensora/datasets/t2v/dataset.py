"""Text-to-video training samples: pixels and caption of annotated videos and images."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from opensora.datasets.broken import Quarantine, read_or_replace
from opensora.datasets.collate import PadAndStack
from opensora.datasets.sampler import group
from opensora.datasets.t2v.captions import say_quality
from opensora.datasets.t2v.clips import read_pixels
from opensora.datasets.t2v.embedding_check import check_embeddings
from opensora.datasets.t2v.index import SampleIndex, open_index
from opensora.datasets.t2v.options import T2VDataOptions
from opensora.datasets.t2v.selection import Shape
from opensora.datasets.t2v.text_cleaning import clean_caption
from opensora.datasets.t2v.text_embeddings import EMPTY_TEXT, find_embedding, load_embedding
from opensora.errors import UserError
from opensora.utils.logs import logger

FEWEST_STEPS = 4  # a shape with fewer samples than this many optimizer steps take is left out


class T2VDataset:
    """Samples by number; no state changes while it is read, so any process may read any sample.

    Args:
        options: what is read and how.
        tokenizer: `opensora.models.text_encoder.tokenizer.Tokenizer` or its like; None with `text_embed_cache`.
        quiet: no table of what was left out; for all ranks but one.

    Raises:
        UserError: faulty annotations, no sample left, or embeddings that are not named in the data file.
        FileNotFoundError: a file of annotations, or the embedding of the empty text, is not there.
    """

    def __init__(self, options: T2VDataOptions, tokenizer, quiet: bool = False):
        if (tokenizer is None) != options.text_embed_cache:
            raise UserError("a tokenizer and text_embed_cache: give one of the two")
        self.options, self.tokenizer = options, tokenizer
        self.index: SampleIndex = open_index(options)
        self.fewest = FEWEST_STEPS * options.total_batch_size
        notes = self._check_embeddings() if options.text_embed_cache else []
        if not len(self):
            raise UserError(f"{options.data}: no sample is left to train on: {self.index.why_none(self.fewest)}")
        self.quarantine = Quarantine(Path(options.cache_dir) / "broken_samples.tsv")
        if not quiet:
            logger.info("\n".join([self.index.table(self.fewest), *notes]))
            if self.quarantine.names:
                logger.info(f"others will stand for the samples listed in {self.quarantine.path}")

    @property
    def buckets(self) -> list[np.ndarray]:
        """The numbers of the samples that may share a batch: of one shape with `group_data`, else all."""
        buckets = group(self.index.shape_of, self.fewest)
        return buckets if self.options.group_data else [np.sort(np.concatenate(buckets))]

    def __len__(self) -> int:
        counts = self.index.shape_counts
        return int(counts[counts >= self.fewest].sum())

    def collate(self, batch_size: int) -> PadAndStack:
        """What makes batches of this dataset's samples; batches of several sizes are padded to the largest asked for.

        Raises:
            UserError: samples larger than batches are padded to.
        """
        options = self.options
        size = None
        if batch_size > 1 and not options.group_data:
            size = Shape(options.num_frames, options.max_height, options.max_width)
            for shape, count in zip(self.index.shapes, self.index.shape_counts):
                if count >= self.fewest and any(side > limit for side, limit in zip(shape, size)):
                    raise UserError(
                        f"{options.data}: samples of {shape}, but without group_data batches are padded "
                        f"to num_frames, max_height and max_width, {size}: raise them"
                    )
        return PadAndStack(
            size,
            (options.ae_stride_t, options.ae_stride, options.ae_stride),
            (options.patch_size_t, options.patch_size, options.patch_size),
        )

    def item(self, index: int, rng: np.random.Generator) -> dict:
        """A sample, or another of its shape if it cannot be read; random choices come from `rng` alone.

        Returns:
            pixels, float32 (3, T, H, W) in [-1, 1]; cond_mask, int32 (1, L); input_ids, int32 (1, L), or with
            `text_embed_cache` cond, float32 (1, L, D); replaced, 1 if it stands for a broken one, else 0.

        Raises:
            UserError: several samples of this shape are broken.
        """

        def of_the_same_shape() -> np.ndarray:
            return np.flatnonzero(self.index.shape_of == self.index.shape_of[index])

        return read_or_replace(self._read, self._name, index, of_the_same_shape, rng, self.quarantine)

    def _read(self, index: int, rng: np.random.Generator) -> dict:
        record = self.index.record(index)
        text = self._embedding(record, rng) if self.options.text_embed_cache else self._tokens(record, rng)
        return {"pixels": read_pixels(self._path(record), record, self._shape(index), self.options, rng), **text}

    def _tokens(self, record: dict, rng: np.random.Generator) -> dict:
        caption = record["cap"]
        if not isinstance(caption, str):
            caption = caption[rng.integers(len(caption))]
        caption = say_quality(caption, record.get("aes"), "num_frames" in record, rng)
        caption = clean_caption(caption, self.tokenizer.knows_chinese)
        text = caption if self._keeps_text(rng) else self._text_instead(record, rng)
        ids, mask = self.tokenizer([text], self.options.model_max_length)
        return {"input_ids": ids, "cond_mask": mask}

    def _embedding(self, record: dict, rng: np.random.Generator) -> dict:
        several = not isinstance(record["cap"], str)
        number = int(rng.integers(len(record["cap"]))) if several else None
        root = self.index.sources[record["source"]].embedding_root
        if self._keeps_text(rng):
            file, _ = find_embedding(root, record["path"], number, record["cap"][number] if several else record["cap"])
        else:
            file = os.path.join(root, EMPTY_TEXT)
        states, mask = load_embedding(file)
        if mask.shape[1] != self.options.model_max_length:
            raise UserError(
                f"{file}: made with --model_max_length {mask.shape[1]}, but training has "
                f"{self.options.model_max_length}"
            )
        return {"cond": states, "cond_mask": mask}

    def _keeps_text(self, rng: np.random.Generator) -> bool:
        return rng.random() >= self.options.cfg

    def _text_instead(self, record: dict, rng: np.random.Generator) -> str:
        """Of a caption that is left out."""
        return ""

    def _check_embeddings(self) -> list[str]:
        """Notes to print; raises UserError or FileNotFoundError for embeddings that cannot be used."""
        for source in self.index.sources:
            if source.embedding_root is None:
                raise UserError(
                    f"{self.options.data}: text_embed_cache needs `root,embedding_root,annotation.json` "
                    f"in every line; {source.annotation} has no embedding_root"
                )
        return check_embeddings(self.index, self.options.model_max_length)

    def _shape(self, index: int) -> Shape:
        return self.index.shapes[self.index.shape_of[index]]

    def _path(self, record: dict) -> Path:
        return Path(self.index.sources[record["source"]].root) / record["path"]

    def _name(self, index: int) -> str:
        """Of the sample in the list of broken ones: several samples may lie in one file."""
        record = self.index.record(index)
        return f"{self._path(record)}@{record['start']}" if "start" in record else str(self._path(record))
