#!/usr/bin/env bash
# Stage 3, filtered videos of 93x352x640:
#     PRETRAINED=./checkpoints/t2v_stage2/checkpoint-N/model bash scripts/text_condition/single-device/train_t2v_stage3.sh
# Published are 100,000 to 200,000 steps with a batch of 1024 samples. The flag --gradient_accumulation_steps brings
# fewer devices there.
# The variables are those of `train` in scripts/lib/published.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../lib/published.sh"

train opensora/train/train_t2v_diffusers.py t2v.yaml ./checkpoints/t2v_stage3 \
    --num_frames 93 \
    --force_resolution --max_height 352 --max_width 640 \
    --sparse1d True --sparse_n 4 \
    --enable_tiling \
    --train_batch_size 1 \
    --start_learning_rate 1e-5 \
    --max_train_steps 200000 \
    "$@"
