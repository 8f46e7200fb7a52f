"""Adds LoRAs to the weights of a model, each times its scale:

python tools/ckpt/fuse_lora.py --model_path DIR --lora FILE[:SCALE] [FILE[:SCALE] ...] --output DIR
"""

import sys

try:
    from opensora.cli.main import run
except ModuleNotFoundError as error:
    sys.exit(f"error: {error}; in the folder of the clone, run: pip install -e . (or: bash scripts/setup.sh)")

if __name__ == "__main__":
    run("opensora.cli.lora:fuse")
