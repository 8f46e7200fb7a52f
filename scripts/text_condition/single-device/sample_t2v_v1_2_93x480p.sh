#!/usr/bin/env bash
# Text-to-video sampling with Open-Sora-Plan v1.2: 93 frames of 480x640.
#     bash scripts/text_condition/single-device/sample_t2v_v1_2_93x480p.sh [more flags]
# PROMPTS is one prompt or a .txt file with one prompt per line.
# scripts/_launch.sh lists the environment variables.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../_launch.sh"

sample_older v1.2.0 93x480p google/mt5-xxl \
    --model_type dit \
    --num_frames 93 --height 480 --width 640 \
    --ae CausalVAEModel_D4_4x8x8 \
    --sample_method EulerAncestralDiscrete --num_sampling_steps 100 --guidance_scale 7.5 --max_sequence_length 512 \
    --enable_tiling --tile_overlap_factor 0.125 --save_memory \
    --precision bf16 \
    "$@"
