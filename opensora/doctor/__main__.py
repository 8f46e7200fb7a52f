"""python -m opensora.doctor. Under msrun, which takes a file: msrun ... opensora/doctor/__main__.py"""

import sys

try:
    from opensora.cli.main import run
except ModuleNotFoundError as error:
    sys.exit(f"error: {error}; in the folder of the clone, run: pip install -e . (or: bash scripts/setup.sh)")

if __name__ == "__main__":
    run("opensora.doctor.command:main")
