"""Compares a folder of generated videos with the real ones of the same file names.

python opensora/eval/eval.py --metric psnr --real_video_dir A --generated_video_dir B
"""

import sys

try:
    from opensora.cli.main import run
except ModuleNotFoundError as error:
    sys.exit(f"error: {error}; in the folder of the clone, run: pip install -e . (or: bash scripts/setup.sh)")

if __name__ == "__main__":
    run("opensora.cli.evaluate:main")
