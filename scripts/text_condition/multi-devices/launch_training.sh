#!/usr/bin/env bash
# Runs a training script of ../single-device, given by name, on several devices with ZeRO stage 2:
#     bash scripts/text_condition/multi-devices/launch_training.sh train_t2v_stage3.sh [more flags]
# On several machines, run it on each one with NODES, NODE_RANK and MASTER_ADDR (see scripts/_launch.sh), and with
# OUTPUT on a disk that all machines can access.
# --nproc_per_node N, or the variable WORKERS, is the number of processes on this machine (8).
set -euo pipefail
single_device=$(dirname "${BASH_SOURCE[0]}")/../single-device

exec bash "$single_device/${1:?name of the training script}" --nproc_per_node "${WORKERS:-8}" "${@:2}"
