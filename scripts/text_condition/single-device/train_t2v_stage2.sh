#!/usr/bin/env bash
# Stage 2, images and videos together, up to 93 frames and as many pixels as 640x640, every aspect:
#     PRETRAINED=./checkpoints/t2i_stage1/checkpoint-N/model bash scripts/text_condition/single-device/train_t2v_stage2.sh
# The published batch is 1024 samples. The flag --gradient_accumulation_steps brings fewer devices there.
# The variables are those of `train` in scripts/lib/published.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../lib/published.sh"

train opensora/train/train_t2v_diffusers.py t2v.yaml ./checkpoints/t2v_stage2 \
    --num_frames 93 \
    --max_hxw $((640 * 640)) --min_hxw $((320 * 320)) \
    --sparse1d True --sparse_n 4 \
    --enable_tiling \
    --train_batch_size 1 \
    --start_learning_rate 2e-5 \
    --max_train_steps 200000 \
    "$@"
