"""Opens a latent cache for training, and compares it with the flags of the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Optional

import numpy as np
from mindspore import Tensor

from opensora.datasets.latents.cache import LatentCache
from opensora.datasets.latents.manifest import check_same
from opensora.device import Device
from opensora.errors import UserError
from opensora.models import MT5EncoderModel, get_vae
from opensora.models.common.distribution import DiagonalGaussian
from opensora.models.model_digest import model_digest
from opensora.train.t2v_options import T2VTrainOptions

REMEDY = "give the same value, or make another cache with opensora encode"


def open_caches(
    options: T2VTrainOptions, settings: Mapping[str, Any]
) -> tuple[Optional[LatentCache], Optional[LatentCache]]:
    """The caches of the training data and of the validation data; None: the run reads pixels, or does not validate.

    Args:
        settings: the flags of the run that the caches must have been made with.

    Raises:
        FileNotFoundError, UserError: no complete cache, or one that was made with other settings or models.
    """
    if options.latent_cache is None:
        return None, None
    cache = _open(options.latent_cache, settings)
    if options.val_data is None or options.val_latent_cache is None:
        return cache, None
    val_cache = _open(options.val_latent_cache, settings)
    for name in ("autoencoder", "text_encoder"):
        first, second = (getattr(one.manifest, name)["digest"] for one in (cache, val_cache))
        if first != second:
            raise UserError(
                f"--val_latent_cache {options.val_latent_cache}: made with another {name} than --latent_cache "
                f"{options.latent_cache}; make both with the same"
            )
    return cache, val_cache


def _open(folder: str, settings: Mapping[str, Any]) -> LatentCache:
    cache = LatentCache(folder)
    check_same(cache.folder, cache.manifest.settings, settings, REMEDY)
    return cache


def check_cache(cache: LatentCache, options: T2VTrainOptions, channels: int, device: Device) -> None:
    """Checks a cache before the training starts, as far as it takes time: models that are given, and all files.

    Args:
        channels: `caption_channels` of the transformer.

    Raises:
        UserError: other models, or a missing or damaged file.
    """
    manifest = cache.manifest
    width = manifest.text_encoder["width"]
    if width != channels:
        raise UserError(
            f"{cache.folder}: its texts have {width} channels, the transformer needs caption_channels {channels}"
        )
    if device.is_main and options.ae_path is not None:
        now = {f"--ae_path {options.ae_path}, digest": autoencoder_digest(options.ae, options.ae_path)}
        check_same(cache.folder, dict.fromkeys(now, manifest.autoencoder["digest"]), now, REMEDY)
    if device.is_main and options.text_encoder_name_1 is not None and not options.data.text_embed_cache:
        path = options.text_encoder_name_1
        now = {f"--text_encoder_name_1 {path}, digest": text_encoder_digest(path)}
        check_same(cache.folder, dict.fromkeys(now, manifest.text_encoder["digest"]), now, REMEDY)
    cache.verify(device.rank, device.world_size)


def cached_posterior(moments: np.ndarray) -> DiagonalGaussian:
    """The posterior of cached moments (B, 2 D, t, h, w), mean and log-variance."""
    return DiagonalGaussian(Tensor(np.ascontiguousarray(moments)))


def autoencoder_digest(name: str, path: str) -> str:
    """A digest of the stored weights of the autoencoder `name`, whatever the precision of the run."""
    return model_digest(get_vae(name, path))


def text_encoder_digest(path: str) -> str:
    """A digest of the stored weights, which are read block by block."""
    return model_digest(MT5EncoderModel.from_pretrained(path, streamed=True))
