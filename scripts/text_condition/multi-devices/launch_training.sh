#!/usr/bin/env bash
# Runs any training script of ../single-device on several devices, with ZeRO stage 2, on one machine or many:
#     bash scripts/text_condition/multi-devices/launch_training.sh train_t2v_stage3.sh [more flags]
# --nproc_per_node N, or the variable WORKERS, is the number of processes on this machine (8).
# For several machines run it on each, with NODES, NODE_RANK and MASTER_ADDR as scripts/lib/launch.sh describes them, and
# with OUTPUT on a disk that all of them see.
set -euo pipefail
single_device=$(dirname "${BASH_SOURCE[0]}")/../single-device

exec bash "$single_device/${1:?name of the training script}" \
    --nproc_per_node "${WORKERS:-8}" "${@:2}"
