#!/usr/bin/env bash
# Stage 1 of WFVAE: clips of 25 consecutive frames at 256x256, 800,000 steps.
#     bash scripts/causalvae/single-device/train.sh [more flags]
# scripts/_launch.sh lists the environment variables.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../_launch.sh"

train_wfvae ./checkpoints/wfvae_stage1 --video_num_frames 25 --sample_rate 1 --max_steps 800000 "$@"
