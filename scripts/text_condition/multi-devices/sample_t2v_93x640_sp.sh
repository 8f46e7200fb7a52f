#!/usr/bin/env bash
# ../single-device/sample_t2v_93x640.sh on several devices, which share each video.
# --nproc_per_node N, or the variable WORKERS, is the number of processes on this machine (8).
set -euo pipefail
single_device=$(dirname "${BASH_SOURCE[0]}")/../single-device
source "$(dirname "${BASH_SOURCE[0]}")/../../lib/launch.sh"
read_launch_flags --nproc_per_node "${WORKERS:-8}" "$@"

exec bash "$single_device/sample_t2v_93x640.sh" --nproc_per_node "$nproc" \
    --sp_size "$nproc" "${flags[@]}"
