"""Trains the inpaint model (image to video, transitions, continuations) on videos and images with captions:

    python opensora/train/train_inpaint.py --data merge_data.txt --model OpenSoraInpaint_v1_3-2B/122 --ae_path DIR \\
        --text_encoder_name_1 DIR --pretrained T2V_WEIGHTS \
        --mask_config scripts/train_configs/mask_config.yaml --output_dir DIR
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # runs from a fresh clone

from opensora.utils.supervision import supervise  # noqa: E402

if __name__ == "__main__":
    supervise()  # under msrun, before MindSpore is imported

from opensora.train.inpaint_options import parse_options  # noqa: E402
from opensora.utils.cli import run_main  # noqa: E402


def main() -> None:
    options = parse_options()
    from opensora.train.inpaint import InpaintTraining
    from opensora.train.trainer import run

    run(InpaintTraining, *options)


if __name__ == "__main__":
    run_main(main)
