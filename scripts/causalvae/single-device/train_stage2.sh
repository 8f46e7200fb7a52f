#!/usr/bin/env bash
# Stage 2 of WFVAE: clips of 49 frames, every second frame of the video, 200,000 steps.
#     PRETRAINED=./checkpoints/wfvae_stage1/checkpoint-N/model \
#         bash scripts/causalvae/single-device/train_stage2.sh [more flags]
# scripts/_launch.sh lists the environment variables.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../_launch.sh"

train_wfvae ./checkpoints/wfvae_stage2 --video_num_frames 49 --sample_rate 2 --max_steps 200000 "$@"
