#!/usr/bin/env bash
# Computes metrics of the reconstructions that prepare_eval.sh wrote:
#     METRICS="psnr ssim" bash scripts/causalvae/single-device/eval.sh [more flags of eval.py]
# The origin folder holds the frames that the VAE received, so sizes and frame rates already match.
set -euo pipefail
EXP_NAME=${EXP_NAME:-wfvae}
SAMPLE_RATE=${SAMPLE_RATE:-1}
NUM_FRAMES=${NUM_FRAMES:-33}
RESOLUTION=${RESOLUTION:-256}
SUBSET_SIZE=${SUBSET_SIZE:-0}
RECON_DIR=video_gen/${EXP_NAME}_sr${SAMPLE_RATE}_nf${NUM_FRAMES}_res${RESOLUTION}_subset${SUBSET_SIZE}

for metric in ${METRICS:-psnr ssim}; do
    python opensora/eval/eval.py \
        --metric "$metric" \
        --real_video_dir "$RECON_DIR/origin" \
        --generated_video_dir "$RECON_DIR" \
        --num_frames "$NUM_FRAMES" \
        --resolution "$RESOLUTION" \
        --crop_size "$RESOLUTION" \
        --subset_size "$SUBSET_SIZE" \
        --batch_size 8 \
        "$@"
done
