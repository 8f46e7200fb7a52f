#!/usr/bin/env bash
# Stage 3, filtered videos of 93x352x640:
#     PRETRAINED=./checkpoints/t2v_stage2/checkpoint-N/model bash scripts/text_condition/single-device/train_t2v_stage3.sh
# What differs from stage 2 is given here; the variables are those of train_t2i_stage1.sh.
set -euo pipefail
export OUTPUT=${OUTPUT:-./checkpoints/t2v_stage3}

exec bash "$(dirname "${BASH_SOURCE[0]}")/train_t2v_stage2.sh" \
    --force_resolution --max_height 352 --max_width 640 \
    --start_learning_rate 1e-5 \
    --max_train_steps 30000 \
    "$@"
