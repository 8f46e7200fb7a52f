#!/usr/bin/env bash
# Training of Open-Sora-Plan v1.0 in three stages. STAGE is 17x256x256 (default), 65x256x256 or 65x512x512.
# Each stage starts from the weights of the one before, the first one from Latte's, t2v.pt.
# DATA is a json list of objects with "path" and "cap". The images beside a video are frames of it.
#     STAGE=65x256x256 PRETRAINED=./checkpoints/v1_0_17x256x256/checkpoint-N/model \
#         bash scripts/text_condition/npu/train_v1_0.sh [more flags]
# The published runs took 40, 18 and 6 hours on 32 A800.
# --nproc_per_node N, or the variable WORKERS, is the number of processes on this machine (8).
# scripts/_launch.sh lists the environment variables.
set -euo pipefail
WEIGHTS=${WEIGHTS:-LanguageBind/Open-Sora-Plan-v1.0.0}
TEXT_ENCODER=${TEXT_ENCODER:-DeepFloyd/t5-v1_1-xxl}
source "$(dirname "${BASH_SOURCE[0]}")/../../_launch.sh"
stage=${STAGE:-17x256x256}
data_flags=(--data_path "${DATA:-./datasets/sharegpt4v_path_cap_64x512x512.json}")

case $stage in
    17x256x256) stage_flags=(--num_frames 17 --max_image_size 256 --train_batch_size 4 --use_image_num 4) ;;
    65x256x256) stage_flags=(--num_frames 65 --max_image_size 256 --train_batch_size 4 --use_image_num 4) ;;
    65x512x512) stage_flags=(--num_frames 65 --max_image_size 512 --train_batch_size 2 --use_image_num 16 --enable_tiling) ;;
    *) fail "STAGE $stage: should be 17x256x256, 65x256x256 or 65x512x512" ;;
esac

train opensora/train/train_t2v_diffusers.py latte.yaml "./checkpoints/v1_0_$stage" --nproc_per_node "${WORKERS:-8}" \
    --model scripts/train_configs/latte_v1_0.json \
    --use_img_from_vid \
    "${stage_flags[@]}" \
    "$@"
