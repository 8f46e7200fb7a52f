"""Makes videos or images from text, or with --model_type i2v from text and given frames:

python opensora/sample/sample.py --model_path DIR --ae_path DIR --text_encoder_name_1 DIR --text_prompt "a prompt"
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # runs from a fresh clone

from opensora.utils.supervision import supervise  # noqa: E402

if __name__ == "__main__":
    supervise()  # under msrun, before MindSpore is imported

from opensora import device  # noqa: E402
from opensora.sample.job import run  # noqa: E402
from opensora.sample.options import parse_options  # noqa: E402
from opensora.utils.cli import run_main  # noqa: E402


def main() -> None:
    options, args = parse_options()
    run(options, device.setup(args))


if __name__ == "__main__":
    run_main(main)
