#!/usr/bin/env bash
# Text-to-video sampling with Open-Sora-Plan v1.0: 65 frames of 256x256; with --force_images images.
#     bash scripts/text_condition/single-device/sample_t2v_v1_0_65x256x256.sh [more flags]
# PROMPTS is one prompt or a .txt file with one prompt per line.
# scripts/_launch.sh lists the environment variables.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../_launch.sh"

sample_older v1.0.0 65x256x256 DeepFloyd/t5-v1_1-xxl \
    --version 65x256x256 \
    --ae CausalVAEModel_4x8x8 \
    --sample_method PNDM --num_sampling_steps 250 --guidance_scale 7.5 \
    --enable_tiling --tile_overlap_factor 0.25 \
    --precision fp16 \
    "$@"
