#!/usr/bin/env bash
# ../single-device/train_stage2.sh, stage 2 of WFVAE, on several devices. Each trains on clips of its own, and
# gradients are averaged.
# --nproc_per_node N, or the variable WORKERS, is the number of processes on this machine (8).
set -euo pipefail
single_device=$(dirname "${BASH_SOURCE[0]}")/../single-device

exec bash "$single_device/train_stage2.sh" --nproc_per_node "${WORKERS:-8}" "$@"
