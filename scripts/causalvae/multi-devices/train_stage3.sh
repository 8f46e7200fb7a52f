#!/usr/bin/env bash
# Stage 3 of WFVAE: the settings of stage 2 plus the LPIPS perceptual loss. LPIPS is the path of its weights.
# Data parallel: each process trains on its own clips, and gradients are averaged.
# Same run as train_stage_3.sh.
#     PRETRAINED=./checkpoints/wfvae_stage2/checkpoint-N/model \
#         bash scripts/causalvae/multi-devices/train_stage3.sh [more flags]
# --nproc_per_node N, or the variable WORKERS, is the number of processes on this machine (8).
# scripts/_launch.sh lists the environment variables.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../_launch.sh"

train_wfvae ./checkpoints/wfvae_stage3 --nproc_per_node "${WORKERS:-8}" \
    --video_num_frames 49 --sample_rate 2 --max_steps 200000 \
    --perceptual_weight 0.1 --lpips_path "${LPIPS:-pretrained/lpips_vgg-426bf45c.ckpt}" "$@"
