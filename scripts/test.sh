#!/usr/bin/env bash
# Creates a virtual environment, installs the project and runs the tests: bash scripts/test.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
REQUIREMENTS=requirements-test.txt bash scripts/setup.sh .venv-test
exec .venv-test/bin/python -m pytest --durations=10 "$@"
