#!/usr/bin/env bash
# Stage 3 on several machines. Run it on each of them, with its number from 0 as NODE_RANK, and with OUTPUT on a disk
# that all of them see:
#     NODE_RANK=0 NODES=8 MASTER_ADDR=10.0.0.1 bash scripts/text_condition/multi-devices/train_t2v_stage3_multi_node.sh
# Eight neighbouring processes, those of one machine, share each video.
# --nproc_per_node N, or the variable WORKERS, is the number of processes on this machine (8).
set -euo pipefail
single_device=$(dirname "${BASH_SOURCE[0]}")/../single-device
: "${NODES:?how many machines there are}" "${NODE_RANK:?the number of this one, from 0}"
: "${MASTER_ADDR:?the address of machine 0}"
source "$(dirname "${BASH_SOURCE[0]}")/../../lib/launch.sh"
read_launch_flags --nproc_per_node "${WORKERS:-8}" "$@"

exec bash "$single_device/train_t2v_stage3.sh" --nproc_per_node "$nproc" \
    --sp_size $((nproc < 8 ? nproc : 8)) "${flags[@]}"
