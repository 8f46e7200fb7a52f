"""Makes videos or images as a config file says; flags change it:

python scripts/inference.py configs/opensora-v1-1/inference/video.py --ckpt-path DIR --prompt "a prompt"
"""

import sys

try:
    from opensora.cli.main import run
except ModuleNotFoundError as error:
    sys.exit(f"error: {error}; in the folder of the clone, run: pip install -e . (or: bash scripts/setup.sh)")

if __name__ == "__main__":
    run("opensora.cli.inference:main")
