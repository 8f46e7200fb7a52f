"""Reconstructs a video with a VAE and says how close it came.

python examples/rec_video.py --ae WFVAEModel_D8_4x8x8 --ae_path weights/vae --video_path clip.mp4 --rec_path rec.mp4
"""

import sys

try:
    from opensora.cli.main import run
except ModuleNotFoundError as error:
    sys.exit(f"error: {error}; in the folder of the clone, run: pip install -e . (or: bash scripts/setup.sh)")

if __name__ == "__main__":
    run("opensora.cli.reconstruct:video")
