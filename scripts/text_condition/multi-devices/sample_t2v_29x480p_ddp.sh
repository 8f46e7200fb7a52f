#!/usr/bin/env bash
# Text-to-video sampling: 29 frames of 480x640.
# Data parallel: each process samples its own videos.
#     bash scripts/text_condition/multi-devices/sample_t2v_29x480p_ddp.sh [more flags]
# PROMPTS is one prompt or a .txt file with one prompt per line.
# --nproc_per_node N, or the variable WORKERS, is the number of processes on this machine (8).
# scripts/_launch.sh lists the environment variables.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../_launch.sh"

sample any93x640x640 ./sample_videos/sora_29x480p_mt5 --nproc_per_node "${WORKERS:-8}" \
    --num_frames 29 --height 480 --width 640 \
    "$@"
