#!/usr/bin/env bash
# ../single-device/train_t2v_stage3.sh on several devices, with ZeRO stage 2.
# --nproc_per_node N, or the variable WORKERS, is the number of processes on this machine (8).
set -euo pipefail
single_device=$(dirname "${BASH_SOURCE[0]}")/../single-device

exec bash "$single_device/train_t2v_stage3.sh" --nproc_per_node "${WORKERS:-8}" "$@"
