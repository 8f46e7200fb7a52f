#!/usr/bin/env bash
# Stage 2 of WFVAE: clips of 49 frames, every second frame of the video, 200,000 steps.
# Data parallel: each process trains on its own clips, and gradients are averaged.
#     PRETRAINED=./checkpoints/wfvae_stage1/checkpoint-N/model \
#         bash scripts/causalvae/multi-devices/train_stage_2.sh [more flags]
# --nproc_per_node N, or the variable WORKERS, is the number of processes on this machine (8).
# scripts/_launch.sh lists the environment variables.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../_launch.sh"

train_wfvae ./checkpoints/wfvae_stage2 --nproc_per_node "${WORKERS:-8}" \
    --video_num_frames 49 --sample_rate 2 --max_steps 200000 "$@"
