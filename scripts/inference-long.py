"""Makes long videos clip by clip, and videos that keep frames of references, as a config file says; flags change it:

    python scripts/inference-long.py configs/opensora-v1-1/inference/long.py --loop 4 --condition-frame-length 8 \\
        --prompt "a prompt" --reference-path picture.png --mask-strategy "0"
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
    config = parse_configs(training=False)
    from opensora import device
    from opensora.sample.config_inference import run

    run(config, device.setup(device_arguments(config)), long=True)


if __name__ == "__main__":
    run_main(main)
