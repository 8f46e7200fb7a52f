#!/usr/bin/env bash
# 29 frames of 480x640, each process making a part of each video:
# bash scripts/text_condition/multi-devices/sample_t2v_29x480p_sp.sh [more flags]
# The variables are those of sample_t2v_93x640_ddp.sh.
set -euo pipefail

OUTPUT=${OUTPUT:-./sample_videos/sora_29x480p_mt5} exec bash "$(dirname "${BASH_SOURCE[0]}")/sample_t2v_93x640_sp.sh" \
    --num_frames 29 --height 480 --width 640 "$@"
