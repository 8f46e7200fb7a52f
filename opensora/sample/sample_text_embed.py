"""Embeds the captions of an annotation file once, so that training needs no text encoder:

python opensora/sample/sample_text_embed.py --data_file_path caption.json --output_path DIR --text_encoder_name DIR
"""

import sys

try:
    from opensora.cli.main import run
except ModuleNotFoundError as error:
    sys.exit(f"error: {error}; in the folder of the clone, run: pip install -e . (or: bash scripts/setup.sh)")

if __name__ == "__main__":
    run("opensora.cli.embed:main")
