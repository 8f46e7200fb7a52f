#!/usr/bin/env bash
# Encodes and decodes an image with the VAE:
#     IMAGE=photo.jpg bash scripts/causalvae/single-device/rec_image.sh [more flags]
set -euo pipefail

python examples/rec_image.py \
    --ae "${AE:-WFVAEModel_D8_4x8x8}" \
    --ae_path "${AE_PATH:-LanguageBind/Open-Sora-Plan-v1.3.0/vae}" \
    --image_path "${IMAGE:?path of an image}" \
    --rec_path "${REC:-rec_image.jpg}" \
    --device "${DEVICE:-Ascend}" \
    --short_size 512 \
    "$@"
