"""Trains the diffusion transformer on videos and images with captions:

    python opensora/train/train_t2v_diffusers.py --data merge_data.txt --model OpenSoraT2V_v1_3-2B/122 --ae_path DIR \\
        --text_encoder_name_1 DIR --output_dir DIR
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # runs from a fresh clone

from opensora.utils.supervision import supervise  # noqa: E402

if __name__ == "__main__":
    supervise()  # under msrun, before MindSpore is imported

from opensora.train.t2v_options import parse_options  # noqa: E402
from opensora.utils.cli import run_main  # noqa: E402


def main() -> None:
    options = parse_options()
    from opensora.train.t2v import T2VTraining
    from opensora.train.trainer import run

    run(T2VTraining, *options)


if __name__ == "__main__":
    run_main(main)
