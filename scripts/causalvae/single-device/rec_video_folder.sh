#!/usr/bin/env bash
# A folder of videos, or those that DATA (a csv with a column "video") lists, through the VAE and back:
#     REAL=datasets/UCF-101 OUTPUT=recons/ucf101 bash scripts/causalvae/single-device/rec_video_folder.sh [more flags]
# The flag --ms_checkpoint FILE takes the weights of that file in place of those in AE_PATH.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../lib/launch.sh"

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
