#!/usr/bin/env bash
# Stage 3 of WFVAE, clips of 49 frames with the perceptual loss, whose weights LPIPS names:
#     PRETRAINED=./checkpoints/wfvae_stage2/checkpoint-N/model bash scripts/causalvae/single-device/train_stage3.sh
# What differs from stage 2 is given here; the variables are those of train.sh.
set -euo pipefail
export OUTPUT=${OUTPUT:-./checkpoints/wfvae_stage3}

exec bash "$(dirname "${BASH_SOURCE[0]}")/train_stage2.sh" \
    --perceptual_weight 0.1 --max_steps 200000 --lpips_path "${LPIPS:-pretrained/lpips_vgg-426bf45c.ckpt}" "$@"
