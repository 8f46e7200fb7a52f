"""opensora latent-scale: the scale and shift that give latents mean 0 and deviation 1 in each channel.

They are measured on videos and written to the config.json of a trained WFVAE.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Optional

import numpy as np
from tqdm import tqdm

from opensora.config.command_line import parse_flags
from opensora.config.commands import LatentScaleOptions
from opensora.config.device import DeviceOptions
from opensora.datasets.vae_options import VAEDataOptions

if TYPE_CHECKING:
    from opensora.datasets.vae import VAEDataset
    from opensora.models import WFVAEModel


def latent_moments(vae: WFVAEModel, videos: VAEDataset, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each latent channel over the first `count` videos, before scale and shift."""
    from mindspore import Tensor

    sums, squares, values = np.zeros(1), np.zeros(1), 0
    for index in tqdm(range(min(count, len(videos))), "videos"):
        video = videos.item(index, np.random.default_rng(index))["video"]
        z = vae.encode(Tensor(video[None])).mode().asnumpy().astype(np.float64)
        sums, squares = sums + z.sum((0, 2, 3, 4)), squares + np.square(z).sum((0, 2, 3, 4))
        values += z[:, 0].size
    mean = sums / values
    return mean, np.sqrt(squares / values - mean**2)


def main(argv: Optional[Sequence[str]] = None) -> None:
    args = parse_flags(
        "Measures the latents of a VAE and writes their scale and shift to its config.json.",
        (LatentScaleOptions, DeviceOptions),
        argv,
    )
    from opensora import device  # MindSpore is imported after the flags are checked
    from opensora.checkpoint.files import read_config
    from opensora.datasets.vae import VAEDataset
    from opensora.models import WFVAEModel

    videos = VAEDataset(
        VAEDataOptions(
            args.video_path, num_frames=args.num_frames, resolution=args.resolution, sample_rate=args.sample_rate
        )
    )
    device.setup(args)
    vae = WFVAEModel.from_pretrained(args.ae_path)
    mean, deviation = latent_moments(vae, videos, args.count)
    config = {
        **read_config(args.ae_path),
        "scale": [float(x) for x in 1 / deviation],
        "shift": [float(x) for x in mean],
    }
    WFVAEModel.without_weights(**config).save_config(Path(args.ae_path))
    for name in ("scale", "shift"):
        print(name, " ".join(f"{x:.4f}" for x in config[name]))
