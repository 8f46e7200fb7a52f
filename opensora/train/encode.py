"""Makes a latent cache: the moments of the autoencoder and the states of the text encoder for a training dataset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

import mindspore as ms
import numpy as np
from mindspore import Tensor
from tqdm import tqdm

from opensora.checkpoint.lazy_tensor import ArrayTensor, LazyTensor
from opensora.datasets.broken import MAX_ATTEMPTS, printable
from opensora.datasets.latents.cache import write_index
from opensora.datasets.latents.clips import Clips, CropOrder, collate, media_signature, sample_key
from opensora.datasets.latents.manifest import MANIFEST, Manifest, check_same
from opensora.datasets.latents.shards import (
    LATENTS,
    TEXTS,
    ShardWriter,
    complete_shards,
    exact_tensor,
    remove_incomplete,
)
from opensora.datasets.loader import Loader
from opensora.datasets.t2v.dataset import T2VDataset
from opensora.datasets.t2v.inpaint import InpaintDataset
from opensora.datasets.t2v.options import InpaintDataOptions
from opensora.device import PRECISIONS, Device
from opensora.errors import UserError
from opensora.models.text_encoder.tokenizer import Tokenizer
from opensora.models.vaes import VAE, enable_tiling, get_vae, published_vae_config
from opensora.parallel.collectives import barrier
from opensora.train.encode_options import EncodeOptions
from opensora.train.encode_texts import text_source
from opensora.train.latent_cache import autoencoder_digest
from opensora.utils.folder_lock import check_free_space, exclusive_folder
from opensora.utils.logs import logger

OTHER_OUTPUT = "use the same, or choose another --output"
NAMES = {dtype: name for name, dtype in PRECISIONS.items()}


def encode(options: EncodeOptions, device: Device) -> None:
    """Makes or completes the cache in `options.output`; each process encodes its share.

    Raises:
        UserError: invalid data; the folder holds another cache; a media file has changed; nothing can be read.
        OSError: a missing file, or too little disk space. What is complete is kept, and the next run resumes.
    """
    published_vae_config(options.ae, options.ae_path)
    tokenizer = None if options.data.text_embed_cache else Tokenizer(options.text_encoder_name_1 or "")
    dataset = make_dataset(options, tokenizer, quiet=not device.is_main)
    texts = text_source(options, dataset, device)
    vae = get_vae(options.ae, options.ae_path, ms.float32 if options.vae_fp32 else device.vae_dtype)
    enable_tiling(vae.set_train(False), options.enable_tiling, options.tile_overlap_factor)
    manifest = new_manifest(options, vae, texts.description)
    with exclusive_folder(options.output, device.is_main) as folder:
        if device.is_main:
            prepare(folder, manifest)
        barrier(device.world_size)
        texts.encode(ShardWriter(folder, TEXTS, device.rank))
        encoder = LatentEncoder(options, dataset, vae, device)
        encoder.encode(ShardWriter(folder, LATENTS, device.rank))
        barrier(device.world_size)
        if device.is_main:
            finish(folder, manifest, dataset)
        barrier(device.world_size)  # the first process holds the folder for all


def make_dataset(options: EncodeOptions, tokenizer: Optional[Tokenizer], quiet: bool) -> T2VDataset:
    if isinstance(options.data, InpaintDataOptions):
        return InpaintDataset(options.data, tokenizer, quiet)
    return T2VDataset(options.data, tokenizer, quiet)


def new_manifest(options: EncodeOptions, vae: VAE, text_encoder: Mapping) -> Manifest:
    """The manifest of a cache that has no files yet."""
    config = {key: list(value) if isinstance(value, tuple) else value for key, value in vae.config.to_dict().items()}
    autoencoder = {
        "config": config,
        "digest": autoencoder_digest(options.ae, options.ae_path),
        "precision": NAMES[vae.dtype],
    }
    encoding = {f"--{name}": getattr(options, name) for name in ("crops", "seed", "enable_tiling")}
    encoding["--tile_overlap_factor"] = options.tile_overlap_factor
    return Manifest(options.settings, encoding, autoencoder, text_encoder)


def prepare(folder: Path, manifest: Manifest) -> None:
    """Compares the manifest with that of an earlier run, or writes it; removes incomplete files."""
    if (folder / MANIFEST).exists():
        before = Manifest.read(folder)
        check_same(folder, before.settings, manifest.settings, OTHER_OUTPUT)
        check_same(folder, before.encoding, manifest.encoding, OTHER_OUTPUT)
        for name in ("autoencoder", "text_encoder"):
            recorded, now = (_labeled(name, getattr(each, name)) for each in (before, manifest))
            check_same(folder, recorded, now, OTHER_OUTPUT)
    else:
        manifest.write(folder)
    remove_incomplete(folder)


def _labeled(model: str, description: Mapping) -> dict[str, Any]:
    """The digest and the precision of a model, by names for error messages."""
    return {f"{name} of the {model.replace('_', ' ')}": description[name] for name in ("precision", "digest")}


def finish(folder: Path, manifest: Manifest, dataset: T2VDataset) -> None:
    """Writes the index, then the manifest, with which the cache is complete."""
    latents, texts = complete_shards(folder, LATENTS), complete_shards(folder, TEXTS)
    keys = [sample_key(dataset, number) for number in range(len(dataset.index))]
    index = write_index(folder, keys, latents, texts)
    files = {shard.name: shard.sha256 for shard in (*latents, *texts)}
    manifest = replace(manifest, samples=dataset.index.digest(), index=index, files=files)
    encoded = {entry["key"] for shard in latents for entry in shard.entries}
    left_out = sum(key not in encoded for key in keys)
    note = f"; {left_out} samples are left out, see {dataset.quarantine.path}" if left_out else ""
    if Manifest.read(folder) == manifest:
        logger.info(f"{folder} is complete, there is nothing to do{note}")
        return
    manifest.write(folder)
    for old in folder.glob("index-*.safetensors"):
        if old.name != index:
            old.unlink()
    size = sum((folder / name).stat().st_size for name in files)
    logger.info(f"{len(keys) - left_out} samples in {folder}, {size / 1e9:.3g} GB{note}")


class LatentEncoder:
    """Encodes the samples of this process, in order of their shapes, except those that earlier runs encoded."""

    def __init__(self, options: EncodeOptions, dataset: T2VDataset, vae: VAE, device: Device):
        self.options, self.dataset, self.vae, self.device = options, dataset, vae, device
        self.broken: dict[int, str] = {}
        order = np.argsort(dataset.index.shape_of, kind="stable")[device.rank :: device.world_size]
        self.mine = {sample_key(dataset, int(number)): int(number) for number in order}

    def encode(self, writer: ShardWriter) -> None:
        done = self._encoded_before(writer.folder)
        todo = [
            (number, key)
            for key, number in self.mine.items()
            if key not in done and self.dataset.name(number) not in self.dataset.quarantine
        ]
        if self.device.is_main:
            check_free_space(writer.folder, self.device.world_size * sum(self._bytes(number) for number, _ in todo))
        keys = dict(todo)
        with tqdm(
            total=len(self.mine),
            initial=len(self.mine) - len(todo),
            desc="latents",
            unit="sample",
            disable=not self.device.is_main,
        ) as progress:
            for number, tensors in self._samples(todo, progress):
                writer.add({"key": keys[number], "signature": media_signature(self.dataset, number)}, tensors)
        writer.flush()
        self._report_broken(len(todo))

    def _encoded_before(self, folder: Path) -> set[str]:
        """The keys of the samples in complete shards. Raises UserError if a media file has changed since."""
        done = set()
        for shard in complete_shards(folder, LATENTS):
            for entry in shard.entries:
                done.add(entry["key"])
                number = self.mine.get(entry["key"])
                now = None if number is None else media_signature(self.dataset, number)
                if number is not None and now is not None and list(now) != entry["signature"]:
                    raise UserError(
                        f"{self.dataset.path(number)}: has changed since it was encoded into {folder}; choose another "
                        f"--output"
                    )
        return done

    def _samples(self, todo: list, progress: tqdm) -> Iterator[tuple[int, dict[str, LazyTensor]]]:
        """The samples that can be read, each with the tensors of all of its crops."""
        options = self.options
        order = CropOrder(todo, self.dataset.index.shape_of, options.crops, options.batch_size, options.seed)
        clips = Clips(self.dataset, options.add_noise_to_condition)
        loader = Loader(clips, order, collate, options.dataloader_num_workers)
        parts: dict[int, dict[str, LazyTensor]] = {}
        crops: Counter[int] = Counter()
        for request, batch in zip(order.upcoming(), loader):
            readable = {}
            for (number, crop), clip in zip(request.indices, batch["clips"]):
                if isinstance(clip, str):
                    self.broken[number] = clip
                else:
                    readable[number, crop] = clip
            for (number, crop), tensors in self._encode(readable).items():
                parts.setdefault(number, {}).update({f".{crop}{name}": one for name, one in tensors.items()})
            crops.update(number for number, _ in request.indices)
            for number in [number for number, count in crops.items() if count == options.crops]:
                del crops[number]
                progress.update()
                found = parts.pop(number, {})
                if number not in self.broken:
                    yield number, found

    def _encode(self, clips: Mapping[tuple[int, int], dict]) -> dict[tuple[int, int], dict[str, LazyTensor]]:
        """The tensors of clips of one shape: moments, and the mask of an inpaint model."""
        if not clips:
            return {}
        parts = ("pixels", "known") if self.options.is_inpaint else ("pixels",)
        moments = np.concatenate(
            [self._moments(np.stack([clip[part] for clip in clips.values()])) for part in parts], 1
        )
        tensors = {}
        for (place, clip), values in zip(clips.items(), moments):
            tensors[place] = {"": exact_tensor(values, NAMES[self.vae.dtype])}
            if "known_mask" in clip:
                tensors[place][".mask"] = ArrayTensor(clip["known_mask"])
        return tensors

    def _moments(self, pixels: np.ndarray) -> np.ndarray:
        """Mean and log-variance of the posterior of videos (B, 3, T, H, W): float32 (B, 2 D, t, h, w)."""
        posterior = self.vae.encode(Tensor(pixels))
        return np.concatenate([posterior.mean.asnumpy(), posterior.logvar.asnumpy()], 1)

    def _bytes(self, number: int) -> int:
        """The most bytes that a sample takes."""
        frames, height, width = self.dataset.shape(number)
        config = self.vae.config
        t, stride = (frames - 1) // config.temporal_stride + 1, config.spatial_stride
        latent = config.latent_dim * t * (height // stride) * (width // stride)
        return 4 * 2 * latent * self.options.crops * (2 if self.options.is_inpaint else 1)

    def _report_broken(self, tried: int) -> None:
        """Lists the samples that could not be read, unless the cause seems to be elsewhere, such as a missing disk."""
        if not self.broken:
            return
        reason = next(iter(self.broken.values()))
        if len(self.broken) == tried and (tried >= MAX_ATTEMPTS or tried == len(self.dataset.index)):
            raise UserError(printable(f"none of {len(self.broken)} samples could be read. The first: {reason}"))
        for number, why in self.broken.items():
            self.dataset.quarantine.add(self.dataset.name(number), why)
        logger.warning(
            printable(
                f"{len(self.broken)} samples cannot be read and are left out; they are listed in "
                f"{self.dataset.quarantine.path}. The first: {reason}"
            )
        )
