"""Trains WFVAE on videos:

    python opensora/train/train_causalvae.py --model_config scripts/causalvae/wfvae_8dim.json \\
        --video_path DIR --output_dir DIR
"""

import sys

try:
    from opensora.cli.main import run
except ModuleNotFoundError as error:
    sys.exit(f"error: {error}; in the folder of the clone, run: pip install -e . (or: bash scripts/setup.sh)")

if __name__ == "__main__":
    run("opensora.cli.train:vae")
