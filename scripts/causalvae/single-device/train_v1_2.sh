#!/usr/bin/env bash
# CausalVAE of Open-Sora-Plan v1.2: clips of 25 consecutive frames at 256x256, 200,000 steps on Kinetics-400. Then set
# PRETRAINED to the moving averages, checkpoint-200000/model_ema, VIDEOS to the videos of v1.1, OUTPUT to another folder,
# and add --max_steps 450000.
#     bash scripts/causalvae/single-device/train_v1_2.sh [more flags]
# --nproc_per_node N starts N processes, which train on their own clips.
# scripts/_launch.sh lists the environment variables.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../_launch.sh"

train_causal_vae causalvae_v1_2.json ./checkpoints/causalvae_v1_2 \
    --disc_cls LPIPSWithDiscriminator3D --disc_start 2000 \
    --use_ema --ema_decay 0.999 \
    --video_num_frames 25 --sample_rate 1 --max_steps 200000 --save_steps 5000 \
    "$@"
