"""Gives a trained WFVAE the scale and shift its latents need for diffusion, mean 0 and deviation 1 in each channel:

    python tools/ckpt/set_latent_scale.py --ae_path DIR --video_path VIDEOS

They are measured on videos and written to DIR/config.json.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # runs from a fresh clone

from opensora.utils.supervision import supervise  # noqa: E402

if __name__ == "__main__":
    supervise()  # under msrun, before MindSpore is imported


from opensora.config.commands import LatentScaleOptions  # noqa: E402
from opensora.config.device import DeviceOptions  # noqa: E402
from opensora.utils.cli import parse_flags, run_main  # noqa: E402

if TYPE_CHECKING:
    from opensora.datasets.vae import VAEDataset
    from opensora.models import WFVAEModel


def latent_moments(vae: WFVAEModel, videos: VAEDataset, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each latent channel over the first `count` videos, before scale and shift."""
    from mindspore import Tensor  # after the flags are parsed

    sums, squares, values = 0.0, 0.0, 0
    for index in tqdm(range(min(count, len(videos))), "videos"):
        video = videos.item(index, np.random.default_rng(index))["video"]
        z = vae.encode(Tensor(video[None])).mode().asnumpy().astype(np.float64)
        sums, squares = sums + z.sum((0, 2, 3, 4)), squares + np.square(z).sum((0, 2, 3, 4))
        values += z[:, 0].size
    mean = sums / values
    return mean, np.sqrt(squares / values - mean**2)


def main() -> None:
    args = parse_flags(
        "Measures the latents of a VAE and writes their scale and shift to its config.json.",
        (LatentScaleOptions, DeviceOptions),
    )
    from opensora import device
    from opensora.checkpoint.files import read_config
    from opensora.datasets.vae import VAEDataOptions, VAEDataset
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


if __name__ == "__main__":
    run_main(main)
