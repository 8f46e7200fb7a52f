#!/usr/bin/env bash
# Stage 3 of text-to-video training: filtered videos of 93x352x640.
#     PRETRAINED=./checkpoints/t2v_stage2/checkpoint-N/model \
#         bash scripts/text_condition/single-device/train_t2v_stage3.sh [more flags]
# The published run has 100,000 to 200,000 steps and a batch of 1024 samples; --gradient_accumulation_steps reaches that
# batch on fewer devices.
# scripts/_launch.sh lists the environment variables.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../_launch.sh"

train opensora/train/train_t2v_diffusers.py t2v.yaml ./checkpoints/t2v_stage3 \
    --num_frames 93 \
    --force_resolution --max_height 352 --max_width 640 \
    --sparse1d True --sparse_n 4 \
    --enable_tiling \
    --train_batch_size 1 \
    --start_learning_rate 1e-5 \
    --max_train_steps 200000 \
    "$@"
