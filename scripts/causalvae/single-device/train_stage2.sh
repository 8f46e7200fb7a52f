#!/usr/bin/env bash
# Stage 2 of WFVAE, clips of 49 frames, every second one of the video:
#     PRETRAINED=./checkpoints/wfvae_stage1/checkpoint-N/model bash scripts/causalvae/single-device/train_stage2.sh
# What differs from stage 1 is given here; the variables are those of train.sh.
set -euo pipefail
export OUTPUT=${OUTPUT:-./checkpoints/wfvae_stage2}

exec bash "$(dirname "${BASH_SOURCE[0]}")/train.sh" --video_num_frames 49 --sample_rate 2 --max_steps 200000 "$@"
