"""Reconstructs an image with a VAE and says how close it came.

python examples/rec_image.py --ae WFVAEModel_D8_4x8x8 --ae_path weights/vae --image_path a.jpg --rec_path rec.png
"""

import sys

try:
    from opensora.cli.main import run
except ModuleNotFoundError as error:
    sys.exit(f"error: {error}; in the folder of the clone, run: pip install -e . (or: bash scripts/setup.sh)")

if __name__ == "__main__":
    run("opensora.cli.reconstruct:image")
