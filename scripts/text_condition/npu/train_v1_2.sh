#!/usr/bin/env bash
# Training of Open-Sora-Plan v1.2 in five stages. STAGE, as frames x width x height, is 1x320x240 (default), 1x640x480,
# 29x640x480, 29x1280x720 or 93x1280x720. Each stage starts from the weights of the one before.
#     STAGE=1x640x480 PRETRAINED=./checkpoints/v1_2_1x320x240/checkpoint-N/model \
#         bash scripts/text_condition/npu/train_v1_2.sh [more flags]
# --nproc_per_node N, or the variable WORKERS, is the number of processes on this machine (8).
# scripts/_launch.sh lists the environment variables.
set -euo pipefail
WEIGHTS=${WEIGHTS:-LanguageBind/Open-Sora-Plan-v1.2.0}
source "$(dirname "${BASH_SOURCE[0]}")/../../_launch.sh"
parse_launch_flags --nproc_per_node "${WORKERS:-8}" "$@"
stage=${STAGE:-1x320x240}

image=(--num_frames 1 --train_batch_size 8 --tile_overlap_factor 0.0)
video=(--train_batch_size 1 --tile_overlap_factor 0.125)
case $stage in
    1x320x240) stage_flags=("${image[@]}" --max_train_steps 146000 --max_height 240 --max_width 320) ;;
    1x640x480) stage_flags=("${image[@]}" --max_train_steps 200000 --max_height 480 --max_width 640) ;;
    29x640x480)
        stage_flags=("${video[@]}" --max_train_steps 30000 --max_height 480 --max_width 640 --num_frames 29)
        stage_flags+=(--sp_size "$nproc" --train_sp_batch_size 2)
        ;;
    29x1280x720)
        stage_flags=("${video[@]}" --max_train_steps 21000 --max_height 720 --max_width 1280 --num_frames 29)
        ;;
    93x1280x720)
        stage_flags=("${video[@]}" --max_train_steps 3000 --max_height 720 --max_width 1280 --num_frames 93)
        ;;
    *) fail "STAGE $stage: should be 1x320x240, 1x640x480, 29x640x480, 29x1280x720 or 93x1280x720" ;;
esac
if [[ $stage = 1x* ]]; then DATA=${DATA:-scripts/train_data/image_data_v1_2.txt}; fi

train opensora/train/train_t2v_diffusers.py t2v_v1_2.yaml "./checkpoints/v1_2_$stage" --nproc_per_node "$nproc" \
    "${stage_flags[@]}" \
    "$@"
