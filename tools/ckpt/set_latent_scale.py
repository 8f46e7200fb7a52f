"""Gives a trained WFVAE the scale and shift its latents need for diffusion, mean 0 and deviation 1 in each channel:

    python tools/ckpt/set_latent_scale.py --ae_path DIR --video_path VIDEOS

They are measured on videos and written to DIR/config.json.
"""

import sys

try:
    from opensora.cli.main import run
except ModuleNotFoundError as error:
    sys.exit(f"error: {error}; in the folder of the clone, run: pip install -e . (or: bash scripts/setup.sh)")

if __name__ == "__main__":
    run("opensora.cli.latent_scale:main")
