#!/usr/bin/env bash
# Sampling from prompts and conditioning frames: 93 frames of 352x640.
# Data parallel: each process samples its own videos.
#     bash scripts/text_condition/multi-devices/sample_inpaint_v1_3_ddp.sh [more flags]
# PROMPTS has one prompt per line. The same line of CONDITIONS has the conditioning images, separated by commas, or the
# conditioning video. Defaults: prompt.txt and conditional_pixel_values_path.txt in the current directory, or in
# assets/i2v if the current directory has no prompt.txt.
# --nproc_per_node N, or the variable WORKERS, is the number of processes on this machine (8).
# scripts/_launch.sh lists the environment variables.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../_launch.sh"
set_inpaint_inputs

sample any93x640x640_i2v ./sample_videos/inpaint_93x640 --nproc_per_node "${WORKERS:-8}" \
    --model_type inpaint \
    --conditional_pixel_values_path "$CONDITIONS" \
    --crop_for_hw \
    --noise_strength 0.0 \
    "$@"
