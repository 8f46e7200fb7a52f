"""The published WFVAE checkpoint (a torch file with EMA and plain weights) to safetensors:

    python tools/model_conversion/convert_wfvae.py --src vae/merged.ckpt \
        --target vae/diffusion_pytorch_model.safetensors --config vae/config.json
"""

import sys

try:
    from opensora.cli.main import run
except ModuleNotFoundError as error:
    sys.exit(f"error: {error}; in the folder of the clone, run: pip install -e . (or: bash scripts/setup.sh)")

if __name__ == "__main__":
    run("opensora.cli.convert:wfvae")
