"""Trains WFVAE on videos:

    python opensora/train/train_causalvae.py --model_config scripts/causalvae/wfvae_8dim.json \\
        --video_path DIR --output_dir DIR
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # runs from a fresh clone

from opensora.utils.supervision import supervise  # noqa: E402

if __name__ == "__main__":
    supervise()  # under msrun, before MindSpore is imported

from opensora.train.vae_options import parse_options  # noqa: E402
from opensora.utils.cli import run_main  # noqa: E402


def main() -> None:
    options = parse_options()
    from opensora.train.trainer import run
    from opensora.train.vae import VAETraining

    run(VAETraining, *options)


if __name__ == "__main__":
    run_main(main)
