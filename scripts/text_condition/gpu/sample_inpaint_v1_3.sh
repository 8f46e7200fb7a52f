#!/usr/bin/env bash
# The published run on GPUs, for which MindSpore 2.7 has no build: the script says so, unless DEVICE is Ascend or CPU.
# It is ../single-device/sample_inpaint_v1_3.sh on several devices. With --sp the processes share each video.
# --nproc_per_node N, or the variable WORKERS, is the number of processes on this machine (8).
set -euo pipefail
single_device=$(dirname "${BASH_SOURCE[0]}")/../single-device

DEVICE=${DEVICE:-GPU} exec bash "$single_device/sample_inpaint_v1_3.sh" --nproc_per_node "${WORKERS:-8}" "$@"
