"""Merges the shards of a model into one safetensors file:

    python tools/ckpt/merge_safetensors.py -i DIR -o FILE -f diffusion_pytorch_model.safetensors.index.json

-f may be the index's name in DIR or its full path.
"""

import sys

try:
    from opensora.cli.main import run
except ModuleNotFoundError as error:
    sys.exit(f"error: {error}; in the folder of the clone, run: pip install -e . (or: bash scripts/setup.sh)")

if __name__ == "__main__":
    run("opensora.cli.merge:main")
