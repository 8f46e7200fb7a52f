#!/usr/bin/env bash
# Training of Open-Sora-Plan v1.1 in three stages. STAGE is 65x512x512 (default), 221x512x512 or 513x512x512.
# Each stage starts from the weights of the one before, the first one from those of v1.0.
# DATA and IMAGES are the text files that list videos and images. Every video is trained with four images.
#     STAGE=221x512x512 PRETRAINED=./checkpoints/v1_1_65x512x512/checkpoint-N/model \
#         bash scripts/text_condition/npu/train_v1_1.sh [more flags]
# The published runs took 72 hours on 80 H100 (65 frames; its weights after 40,000 to 60,000 steps were judged best) and
# 72 hours on 512 Ascend (221 frames, of which eight share a video).
# --nproc_per_node N, or the variable WORKERS, is the number of processes on this machine (8).
# scripts/_launch.sh lists the environment variables.
set -euo pipefail
WEIGHTS=${WEIGHTS:-LanguageBind/Open-Sora-Plan-v1.1.0}
TEXT_ENCODER=${TEXT_ENCODER:-DeepFloyd/t5-v1_1-xxl}
source "$(dirname "${BASH_SOURCE[0]}")/../../_launch.sh"
parse_launch_flags --nproc_per_node "${WORKERS:-8}" "$@"
stage=${STAGE:-65x512x512}
data_flags=(
    --video_data "${DATA:-scripts/train_data/video_data_v1_1.txt}"
    --image_data "${IMAGES:-scripts/train_data/image_data_v1_1.txt}"
)

case $stage in
    65x512x512) stage_flags=(--num_frames 65 --train_batch_size 2) ;;
    221x512x512) stage_flags=(--num_frames 221 --train_batch_size 1 --sp_size "$nproc") ;;
    513x512x512) stage_flags=(--num_frames 513 --train_batch_size 1) ;;
    *) fail "STAGE $stage: should be 65x512x512, 221x512x512 or 513x512x512" ;;
esac

train opensora/train/train_t2v_diffusers.py latte.yaml "./checkpoints/v1_1_$stage" --nproc_per_node "$nproc" \
    --model LatteT2V-XL/122 \
    --max_image_size 512 \
    --use_image_num 4 \
    --enable_tiling \
    "${stage_flags[@]}" \
    "$@"
