#!/usr/bin/env bash
# Encodes and decodes a folder of videos with the VAE. DATA is an optional csv file whose column "video" selects files:
#     REAL=datasets/UCF-101 OUTPUT=recons/ucf101 bash scripts/causalvae/single-device/rec_video_folder.sh [more flags]
# The flag --ms_checkpoint FILE loads the weights from FILE instead of AE_PATH.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../_launch.sh"

launch examples/rec_video_folder.py \
    --ae "${AE:-WFVAEModel_D8_4x8x8}" \
    --ae_path "${AE_PATH:-LanguageBind/Open-Sora-Plan-v1.3.0/vae}" \
    --real_video_dir "${REAL:?folder of videos}" \
    ${DATA:+--data_file_path "$DATA"} \
    --generated_video_dir "${OUTPUT:-./recons}" \
    --device "${DEVICE:-Ascend}" \
    --batch_size 1 \
    --sample_fps 30 \
    --sample_rate 1 \
    --num_frames 25 \
    --height 256 \
    --width 256 \
    --num_workers 8 \
    "$@"
