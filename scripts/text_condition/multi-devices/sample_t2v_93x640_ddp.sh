#!/usr/bin/env bash
# ../single-device/sample_t2v_93x640.sh on several devices, each of which makes videos of its own.
# --nproc_per_node N, or the variable WORKERS, is the number of processes on this machine (8).
set -euo pipefail
single_device=$(dirname "${BASH_SOURCE[0]}")/../single-device

exec bash "$single_device/sample_t2v_93x640.sh" --nproc_per_node "${WORKERS:-8}" "$@"
