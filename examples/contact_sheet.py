"""Puts frames of videos into one image, a row for each video:

python examples/contact_sheet.py --output sheet.png clip.mp4 another.mp4
"""

import sys

try:
    from opensora.cli.main import run
except ModuleNotFoundError as error:
    sys.exit(f"error: {error}; in the folder of the clone, run: pip install -e . (or: bash scripts/setup.sh)")

if __name__ == "__main__":
    run("opensora.cli.contact_sheet:main")
