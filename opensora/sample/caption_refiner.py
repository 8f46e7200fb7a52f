"""Rewrites short prompts into detailed ones with a causal language model:

    python opensora/sample/caption_refiner.py [--caption_refiner DIR] [--prompt "a cat" "a dog"] [--output FILE.txt]

Without flags the published refiner rewrites the prompts of examples/sora.txt.
"""

import sys

try:
    from opensora.cli.main import run
except ModuleNotFoundError as error:
    sys.exit(f"error: {error}; in the folder of the clone, run: pip install -e . (or: bash scripts/setup.sh)")

if __name__ == "__main__":
    run("opensora.cli.refine:main")
