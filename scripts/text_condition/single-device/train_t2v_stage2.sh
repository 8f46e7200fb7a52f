#!/usr/bin/env bash
# Stage 2 of text-to-video training: images and videos, up to 93 frames and 640x640 pixels, all aspect ratios.
#     PRETRAINED=./checkpoints/t2i_stage1/checkpoint-N/model \
#         bash scripts/text_condition/single-device/train_t2v_stage2.sh [more flags]
# The published batch is 1024 samples; --gradient_accumulation_steps reaches it on fewer devices.
# scripts/_launch.sh lists the environment variables.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../_launch.sh"

train opensora/train/train_t2v_diffusers.py t2v.yaml ./checkpoints/t2v_stage2 \
    --num_frames 93 \
    --max_hxw $((640 * 640)) --min_hxw $((320 * 320)) \
    --sparse1d True --sparse_n 4 \
    --enable_tiling \
    --train_batch_size 1 \
    --start_learning_rate 2e-5 \
    --max_train_steps 200000 \
    "$@"
