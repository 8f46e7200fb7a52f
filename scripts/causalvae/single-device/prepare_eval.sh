#!/usr/bin/env bash
# Reconstructs a folder of videos with the VAE, as input of eval.sh:
#   REAL=test_video bash scripts/causalvae/single-device/prepare_eval.sh [more flags]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../_launch.sh"
EXP_NAME=${EXP_NAME:-wfvae}
SAMPLE_RATE=${SAMPLE_RATE:-1}
NUM_FRAMES=${NUM_FRAMES:-33}
RESOLUTION=${RESOLUTION:-256}
SUBSET_SIZE=${SUBSET_SIZE:-0}
RECON_DIR=video_gen/${EXP_NAME}_sr${SAMPLE_RATE}_nf${NUM_FRAMES}_res${RESOLUTION}_subset${SUBSET_SIZE}

launch examples/rec_video_folder.py \
    --ae "${AE:-WFVAEModel_D8_4x8x8}" \
    --ae_path "${AE_PATH:-LanguageBind/Open-Sora-Plan-v1.3.0/vae}" \
    --real_video_dir "${REAL:-test_video}" \
    --generated_video_dir "$RECON_DIR" \
    --device "${DEVICE:-Ascend}" \
    --batch_size 1 \
    --sample_fps 24 \
    --sample_rate "$SAMPLE_RATE" \
    --num_frames "$NUM_FRAMES" \
    --resolution "$RESOLUTION" \
    --crop_size "$RESOLUTION" \
    --subset_size "$SUBSET_SIZE" \
    --num_workers 8 \
    --output_origin \
    "$@"
