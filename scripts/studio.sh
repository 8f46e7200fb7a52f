#!/usr/bin/env bash
# Sets up a fresh clone and starts the studio, where videos are made in a browser; two CPU cores are enough:
#     bash scripts/studio.sh [flags of opensora studio]
# Without flags it serves the demo model on http://127.0.0.1:7860 and keeps its videos in ./studio.
set -euo pipefail
started_in=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
REQUIREMENTS=requirements-studio.txt bash scripts/setup.sh .venv
# shellcheck source=/dev/null
source .venv/bin/activate
PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
export PYTHONPATH
cd "$started_in" # paths in flags are relative to it
exec python -m opensora.cli studio "$@"
