"""Weights of torch.save, one file or shards named by an index.json, to one safetensors file:

    python tools/model_conversion/convert_pytorch_ckpt_to_safetensors.py --src google/mt5-xxl/pytorch_model.bin \
        --target google/mt5-xxl/model.safetensors --config google/mt5-xxl/config.json
"""

import sys

try:
    from opensora.cli.main import run
except ModuleNotFoundError as error:
    sys.exit(f"error: {error}; in the folder of the clone, run: pip install -e . (or: bash scripts/setup.sh)")

if __name__ == "__main__":
    run("opensora.cli.convert:torch")
