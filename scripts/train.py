"""Trains as a config file says; flags change it:

python scripts/train.py configs/opensora-v1-1/train/video.py --data-path data.csv
msrun --worker_num=8 --local_worker_num=8 --join=True scripts/train.py CONFIG --data-path data.csv
"""

import sys

try:
    from opensora.cli.main import run
except ModuleNotFoundError as error:
    sys.exit(f"error: {error}; in the folder of the clone, run: pip install -e . (or: bash scripts/setup.sh)")

if __name__ == "__main__":
    run("opensora.cli.train:config")
