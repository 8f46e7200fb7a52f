#!/usr/bin/env bash
# Stage 3 of text-to-video training on several machines: filtered videos of 93x352x640. ZeRO stage 2.
# Run it on each machine with its index from 0 as NODE_RANK, and with OUTPUT on a disk that all machines can access:
#     NODE_RANK=0 NODES=8 MASTER_ADDR=10.0.0.1 PRETRAINED=./checkpoints/t2v_stage2/checkpoint-N/model \
#         bash scripts/text_condition/multi-devices/train_t2v_stage3_multi_node.sh [more flags]
# The eight processes of a machine share each video (sequence parallelism).
# The published run has 100,000 to 200,000 steps and a batch of 1024 samples; --gradient_accumulation_steps reaches that
# batch on fewer devices.
# --nproc_per_node N, or the variable WORKERS, is the number of processes on this machine (8).
# scripts/_launch.sh lists the environment variables.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../_launch.sh"
: "${NODES:?how many machines there are}" "${NODE_RANK:?the number of this one, from 0}"
: "${MASTER_ADDR:?the address of machine 0}"
parse_launch_flags --nproc_per_node "${WORKERS:-8}" "$@"

train opensora/train/train_t2v_diffusers.py t2v.yaml ./checkpoints/t2v_stage3 \
    --nproc_per_node "$nproc" \
    --num_frames 93 \
    --force_resolution --max_height 352 --max_width 640 \
    --sparse1d True --sparse_n 4 \
    --enable_tiling \
    --train_batch_size 1 \
    --start_learning_rate 1e-5 \
    --max_train_steps 200000 \
    --sp_size $((nproc < 8 ? nproc : 8)) \
    "$@"
