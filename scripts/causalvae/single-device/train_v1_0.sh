#!/usr/bin/env bash
# CausalVAE of Open-Sora-Plan v1.0: clips of 17 consecutive frames at 256x256, with a discriminator of frames.
#     bash scripts/causalvae/single-device/train_v1_0.sh [more flags]
# --nproc_per_node N starts N processes, which train on their own clips.
# scripts/_launch.sh lists the environment variables.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../_launch.sh"

train_causal_vae causalvae_v1_0.json ./checkpoints/causalvae_v1_0 \
    --disc_cls LPIPSWithDiscriminator --disc_start 2001 \
    --betas 0.5 0.9 --weight_decay 0 --clip_grad --max_grad_norm 1 \
    --video_num_frames 17 --sample_rate 1 --max_steps 40000 --save_steps 100 \
    "$@"
