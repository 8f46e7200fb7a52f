#!/usr/bin/env bash
# Stage 1 of WFVAE: clips of 25 consecutive frames at 256x256, 800,000 steps.
# Data parallel: each process trains on its own clips, and gradients are averaged.
#     bash scripts/causalvae/multi-devices/train_stage_1.sh [more flags]
# --nproc_per_node N, or the variable WORKERS, is the number of processes on this machine (8).
# scripts/_launch.sh lists the environment variables.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../_launch.sh"

train_wfvae ./checkpoints/wfvae_stage1 --nproc_per_node "${WORKERS:-8}" \
    --video_num_frames 25 --sample_rate 1 --max_steps 800000 "$@"
