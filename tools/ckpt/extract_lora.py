"""Approximates the difference of two models by a LoRA:

    python tools/ckpt/extract_lora.py --base DIR --tuned DIR --rank 32 --output FILE

--energy 0.99 in place of --rank keeps that share of every layer's difference.
"""

import sys

try:
    from opensora.cli.main import run
except ModuleNotFoundError as error:
    sys.exit(f"error: {error}; in the folder of the clone, run: pip install -e . (or: bash scripts/setup.sh)")

if __name__ == "__main__":
    run("opensora.cli.lora:extract")
