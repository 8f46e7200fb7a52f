"""Trains the diffusion transformer on videos and images with captions:

    python opensora/train/train_t2v_diffusers.py --data merge_data.txt --model OpenSoraT2V_v1_3-2B/122 --ae_path DIR \\
        --text_encoder_name_1 DIR --output_dir DIR
"""

import sys

try:
    from opensora.cli.main import run
except ModuleNotFoundError as error:
    sys.exit(f"error: {error}; in the folder of the clone, run: pip install -e . (or: bash scripts/setup.sh)")

if __name__ == "__main__":
    run("opensora.cli.train:t2v")
