"""Generates videos or images from text, with --model_type i2v also from conditioning frames:

python opensora/sample/sample.py --model_path DIR --ae_path DIR --text_encoder_name_1 DIR --text_prompt "a prompt"
"""

import sys

try:
    from opensora.cli.main import run
except ModuleNotFoundError as error:
    sys.exit(f"error: {error}; in the folder of the clone, run: pip install -e . (or: bash scripts/setup.sh)")

if __name__ == "__main__":
    run("opensora.cli.sample:main")
