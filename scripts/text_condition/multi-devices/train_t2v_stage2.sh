#!/usr/bin/env bash
# ../single-device/train_t2v_stage2.sh on several devices, with ZeRO stage 2. Eight neighbouring processes share each
# video, or all where there are fewer.
# --nproc_per_node N, or the variable WORKERS, is the number of processes on this machine (8).
set -euo pipefail
single_device=$(dirname "${BASH_SOURCE[0]}")/../single-device
source "$(dirname "${BASH_SOURCE[0]}")/../../lib/launch.sh"
read_launch_flags --nproc_per_node "${WORKERS:-8}" "$@"

exec bash "$single_device/train_t2v_stage2.sh" --nproc_per_node "$nproc" \
    --sp_size $((nproc < 8 ? nproc : 8)) --train_sp_batch_size 1 "${flags[@]}"
