"""Finds the timesteps with which a run of few steps comes nearest to a long run, for --timesteps of sample.py:

    python tools/search_steps.py --steps 8 --model_path DIR --ae_path DIR --text_encoder_name_1 DIR --text_prompt FILE

They are written beside the weights.
"""

import sys

try:
    from opensora.cli.main import run
except ModuleNotFoundError as error:
    sys.exit(f"error: {error}; in the folder of the clone, run: pip install -e . (or: bash scripts/setup.sh)")

if __name__ == "__main__":
    run("opensora.cli.search_steps:main")
