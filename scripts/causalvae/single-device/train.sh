#!/usr/bin/env bash
# Stage 1 of WFVAE, clips of 25 frames at 256x256: bash scripts/causalvae/single-device/train.sh [more flags]
# The variables are those of `train_wfvae` in scripts/lib/published.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../lib/published.sh"

train_wfvae ./checkpoints/wfvae_stage1 --video_num_frames 25 --sample_rate 1 --max_steps 800000 "$@"
