"""Trains as a config file says; flags change it:

python scripts/train.py configs/opensora-v1-1/train/video.py --data-path data.csv
msrun --worker_num=8 --local_worker_num=8 --join=True scripts/train.py CONFIG --data-path data.csv
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a fresh clone

from opensora.utils.supervision import supervise  # noqa: E402

if __name__ == "__main__":
    supervise()  # under msrun, before MindSpore is imported

from opensora.cli.config_files import parse_configs  # noqa: E402
from opensora.config.mmengine import device_arguments  # noqa: E402
from opensora.utils.cli import run_main  # noqa: E402


def main() -> None:
    config = parse_configs(training=True)
    from opensora import device
    from opensora.train.config_run import run

    run(config, device.setup(device_arguments(config)))


if __name__ == "__main__":
    run_main(main)
