#!/usr/bin/env bash
# Creates a virtual environment and installs the project with its dependencies: bash scripts/setup.sh [FOLDER=.venv]
# Environment variables: PYTHON, the interpreter (default: the newest of Python 3.11, 3.10 and 3.9), and REQUIREMENTS,
# the requirements file (default: requirements.txt).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=${1:-.venv}

suitable() {
    "$1" -c 'import sys, venv, ensurepip; sys.exit(not (3, 9) <= sys.version_info[:2] <= (3, 11))' 2>/dev/null
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3.10 python3.9 python3 python}; do
        if suitable "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    cat >&2 <<EOF
error: no Python 3.9, 3.10 or 3.11 with the venv module was found${PYTHON:+ (PYTHON=$PYTHON)}.
MindSpore 2.7.0 has wheels only for these versions. Install one of them, for example with
    apt-get install python3.11 python3.11-venv      or      conda create -n opensora python=3.11
or set PYTHON: PYTHON=/path/to/python3.11 bash scripts/setup.sh
EOF
    return 1
}

if ! command -v g++ >/dev/null; then
    echo "note: g++ was not found. Packages without a wheel for this machine cannot be built without it." >&2
    echo "      Install it with apt-get install g++ or your system's equivalent." >&2
fi

if [ ! -x "$venv/bin/python" ]; then
    python=$(find_python)
    "$python" -m venv "$venv"
fi
requirements=${REQUIREMENTS:-requirements.txt}
# The stamp skips pip while the requirements are unchanged.
stamp=$venv/.installed
wanted=$(cat requirements.txt "$requirements" requirements/*.txt pyproject.toml | cksum)
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    "$venv/bin/python" -m pip install --quiet --upgrade pip
    "$venv/bin/python" -m pip install --quiet -r "$requirements"
    "$venv/bin/python" -m pip install --quiet --no-deps --editable .
    echo "$wanted" > "$stamp"
fi
echo "ready: source $venv/bin/activate"
