#!/usr/bin/env bash
# Stage 1 of text-to-video training: images of 256x256.
#     bash scripts/text_condition/single-device/train_t2i_stage1.sh [more flags]
# Run it first with the defaults: 150,000 steps with dense attention. Then set SPARSE1D=True, PRETRAINED to the first
# run's checkpoint-N/model and OUTPUT to another folder: 100,000 steps that adapt the weights to skiparse attention.
# The published batch is 1024 samples; --gradient_accumulation_steps reaches it on fewer devices.
# scripts/_launch.sh lists the environment variables.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../_launch.sh"
sparse1d=${SPARSE1D:-False}
steps=150000
if [ "$sparse1d" = True ]; then steps=100000; fi
DATA=${DATA:-scripts/train_data/image_data_v1_2.txt}

train opensora/train/train_t2v_diffusers.py t2v.yaml ./checkpoints/t2i_stage1 \
    --num_frames 1 \
    --force_resolution --max_height 256 --max_width 256 \
    --sparse1d "$sparse1d" --sparse_n 4 \
    --train_batch_size 32 \
    --start_learning_rate 2e-5 \
    --max_train_steps "$steps" \
    "$@"
