#!/usr/bin/env bash
# Encodes and decodes a video with the VAE:
#     VIDEO=clip.mp4 bash scripts/causalvae/single-device/rec_video.sh [more flags]
set -euo pipefail

python examples/rec_video.py \
    --ae "${AE:-WFVAEModel_D8_4x8x8}" \
    --ae_path "${AE_PATH:-LanguageBind/Open-Sora-Plan-v1.3.0/vae}" \
    --video_path "${VIDEO:?path of a video}" \
    --rec_path "${REC:-rec_video.mp4}" \
    --device "${DEVICE:-Ascend}" \
    --sample_rate 1 \
    --num_frames 65 \
    --height 512 \
    --width 512 \
    --fps 30 \
    --enable_tiling \
    "$@"
