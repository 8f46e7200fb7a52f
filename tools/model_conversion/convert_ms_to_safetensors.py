"""A MindSpore checkpoint of this project to safetensors that PyTorch opens:

    python tools/model_conversion/convert_ms_to_safetensors.py --src model.ckpt \
        --target diffusion_pytorch_model.safetensors --config config.json
"""

import sys

try:
    from opensora.cli.main import run
except ModuleNotFoundError as error:
    sys.exit(f"error: {error}; in the folder of the clone, run: pip install -e . (or: bash scripts/setup.sh)")

if __name__ == "__main__":
    run("opensora.cli.convert:mindspore")
