#!/usr/bin/env bash
# Creates a virtual environment, installs the project and runs the tests: bash scripts/test.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# The studio's page is tested in a browser. Where none can be installed, these tests are skipped.
if ! command -v chromedriver >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update && apt-get install -y --no-install-recommends chromium chromium-driver; } >/dev/null 2>&1 ||
        echo "note: chromium was not installed; the tests in tests/browser are skipped" >&2
fi
REQUIREMENTS=requirements-test.txt bash scripts/setup.sh .venv-test
exec .venv-test/bin/python -m pytest --durations=10 "$@"
