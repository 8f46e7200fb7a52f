"""Makes long videos clip by clip, and videos that keep frames of references, as a config file says; flags change it:

    python scripts/inference-long.py configs/opensora-v1-1/inference/long.py --loop 4 --condition-frame-length 8 \\
        --prompt "a prompt" --reference-path picture.png --mask-strategy "0"
"""

import sys

try:
    from opensora.cli.main import run
except ModuleNotFoundError as error:
    sys.exit(f"error: {error}; in the folder of the clone, run: pip install -e . (or: bash scripts/setup.sh)")

if __name__ == "__main__":
    run("opensora.cli.inference:main_long")
