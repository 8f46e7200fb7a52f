#!/usr/bin/env bash
# Text-to-video sampling: 93 frames of 352x640.
# Sequence parallel: all processes share each video.
#     bash scripts/text_condition/multi-devices/sample_t2v_93x640_sp.sh [more flags]
# PROMPTS is one prompt or a .txt file with one prompt per line.
# --nproc_per_node N, or the variable WORKERS, is the number of processes on this machine (8).
# scripts/_launch.sh lists the environment variables.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../_launch.sh"
parse_launch_flags --nproc_per_node "${WORKERS:-8}" "$@"

sample any93x640x640 ./sample_videos/sora_93x640_mt5 --nproc_per_node "$nproc" \
    --sp_size "$nproc" \
    "$@"
