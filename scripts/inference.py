"""Makes videos or images as a config file says; flags change it:

    python scripts/inference.py configs/opensora-v1-1/inference/video.py --ckpt-path DIR --prompt "a prompt"
"""
from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a fresh clone

from opensora.sample.config_inference import run  # noqa: E402
from opensora.utils.cli import run_main  # noqa: E402
from opensora.utils.config_utils import parse_configs  # noqa: E402

if __name__ == "__main__":
    run_main(lambda: run(parse_configs(training=False), long=False))
