#!/usr/bin/env bash
# Stage 3 of WFVAE, as stage 2 with the perceptual loss, whose weights LPIPS names:
#     PRETRAINED=./checkpoints/wfvae_stage2/checkpoint-N/model bash scripts/causalvae/single-device/train_stage3.sh
# The variables are those of `train_wfvae` in scripts/lib/published.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../lib/published.sh"

train_wfvae ./checkpoints/wfvae_stage3 --video_num_frames 49 --sample_rate 2 --max_steps 200000 \
    --perceptual_weight 0.1 --lpips_path "${LPIPS:-pretrained/lpips_vgg-426bf45c.ckpt}" "$@"
