"""Sets scale and shift of a trained WFVAE such that each latent channel has mean 0 and standard deviation 1:

    python tools/ckpt/set_latent_scale.py --ae_path DIR --video_path VIDEOS

The statistics are measured on videos; scale and shift are written to DIR/config.json.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # runs from a fresh clone

from opensora.utils.supervision import supervise  # noqa: E402

if __name__ == "__main__":
    supervise()  # under msrun, before MindSpore is imported

from mindspore import Tensor  # noqa: E402, after opensora, which configures its threads

from opensora import device  # noqa: E402
from opensora.checkpoint.files import read_config  # noqa: E402
from opensora.datasets.vae import VAEDataOptions, VAEDataset  # noqa: E402
from opensora.models import WFVAEModel  # noqa: E402
from opensora.utils.cli import CommandParser, run_main  # noqa: E402


def latent_moments(vae: WFVAEModel, videos: VAEDataset, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each latent channel over the first `count` videos, before scale and shift."""
    sums, squares, values = 0.0, 0.0, 0
    for index in tqdm(range(min(count, len(videos))), "videos"):
        video = videos.item(index, np.random.default_rng(index))["video"]
        z = vae.encode(Tensor(video[None])).mode().asnumpy().astype(np.float64)
        sums, squares = sums + z.sum((0, 2, 3, 4)), squares + np.square(z).sum((0, 2, 3, 4))
        values += z[:, 0].size
    mean = sums / values
    return mean, np.sqrt(squares / values - mean**2)


def main() -> None:
    parser = CommandParser(description="Measures a VAE's latents; writes scale and shift to its config.json.")
    parser.add_argument("--ae_path", required=True, help="folder of the VAE")
    parser.add_argument("--video_path", required=True, help="folder of videos")
    parser.add_argument("--num_frames", type=int, default=17, help="frames per video, 4n+1")
    parser.add_argument("--resolution", type=int, default=256, help="height and width, a multiple of 8")
    parser.add_argument("--sample_rate", type=int, default=1, help="use every n-th frame")
    parser.add_argument("--count", type=int, default=200, help="maximum number of videos")
    device.add_arguments(parser)
    args = parser.parse_args()
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
