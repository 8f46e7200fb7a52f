#!/usr/bin/env bash
# Stage 2 of WFVAE, clips of 49 frames, every second one of the video:
#     PRETRAINED=./checkpoints/wfvae_stage1/checkpoint-N/model bash scripts/causalvae/single-device/train_stage2.sh
# The variables are those of `train_wfvae` in scripts/lib/published.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../lib/published.sh"

train_wfvae ./checkpoints/wfvae_stage2 --video_num_frames 49 --sample_rate 2 --max_steps 200000 "$@"
