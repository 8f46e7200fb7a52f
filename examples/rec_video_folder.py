"""Reconstructs a folder of videos with a VAE and prints a table of PSNR and SSIM.

Damaged and too short videos are skipped and listed at the end; a second run does only what is missing.

    python examples/rec_video_folder.py --ae WFVAEModel_D8_4x8x8 --ae_path weights/vae \
        --real_video_dir videos --generated_video_dir rec
"""

import sys

try:
    from opensora.cli.main import run
except ModuleNotFoundError as error:
    sys.exit(f"error: {error}; in the folder of the clone, run: pip install -e . (or: bash scripts/setup.sh)")

if __name__ == "__main__":
    run("opensora.cli.reconstruct:folder")
