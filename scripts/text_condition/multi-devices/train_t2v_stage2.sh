#!/usr/bin/env bash
# Stage 2 of text-to-video training: images and videos, up to 93 frames and 640x640 pixels, all aspect ratios.
#     PRETRAINED=./checkpoints/t2i_stage1/checkpoint-N/model \
#         bash scripts/text_condition/multi-devices/train_t2v_stage2.sh [more flags]
# ZeRO stage 2. Groups of eight consecutive processes share each video (sequence parallelism); fewer than eight form one
# group.
# The published batch is 1024 samples; --gradient_accumulation_steps reaches it on fewer devices.
# --nproc_per_node N, or the variable WORKERS, is the number of processes on this machine (8).
# scripts/_launch.sh lists the environment variables.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../_launch.sh"
parse_launch_flags --nproc_per_node "${WORKERS:-8}" "$@"

train opensora/train/train_t2v_diffusers.py t2v.yaml ./checkpoints/t2v_stage2 \
    --nproc_per_node "$nproc" \
    --num_frames 93 \
    --max_hxw $((640 * 640)) --min_hxw $((320 * 320)) \
    --sparse1d True --sparse_n 4 \
    --enable_tiling \
    --train_batch_size 1 \
    --start_learning_rate 2e-5 \
    --max_train_steps 200000 \
    --sp_size $((nproc < 8 ? nproc : 8)) --train_sp_batch_size 1 \
    "$@"
