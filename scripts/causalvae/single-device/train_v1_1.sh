#!/usr/bin/env bash
# CausalVAE of Open-Sora-Plan v1.1, with a discriminator of videos. STAGE is 9x256x256 (default) or 25x256x256, which
# starts from the weights of the first: set PRETRAINED.
#     bash scripts/causalvae/single-device/train_v1_1.sh [more flags]
# --nproc_per_node N starts N processes, which train on their own clips.
# scripts/_launch.sh lists the environment variables.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../_launch.sh"
stage=${STAGE:-9x256x256}
case $stage in
    9x256x256 | 25x256x256) ;;
    *) fail "STAGE $stage: should be 9x256x256 or 25x256x256" ;;
esac

train_causal_vae causalvae_v1_1.json "./checkpoints/causalvae_v1_1_$stage" \
    --disc_cls LPIPSWithDiscriminator3D --disc_start 2001 \
    --betas 0.5 0.9 --weight_decay 0 --clip_grad --max_grad_norm 1 \
    --video_num_frames "${stage%%x*}" --sample_rate 1 --max_steps 100000 --save_steps 1000 \
    "$@"
