"""Stores the float32 tensors of a safetensors file as float16, which halves it; they are read as before:

python tools/ckpt/cast_safetensors.py -i FILE -o FILE
"""

import sys

try:
    from opensora.cli.main import run
except ModuleNotFoundError as error:
    sys.exit(f"error: {error}; in the folder of the clone, run: pip install -e . (or: bash scripts/setup.sh)")

if __name__ == "__main__":
    run("opensora.cli.cast:main")
