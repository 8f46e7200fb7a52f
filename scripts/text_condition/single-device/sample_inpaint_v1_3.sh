#!/usr/bin/env bash
# Videos from prompts and given frames: bash scripts/text_condition/single-device/sample_inpaint_v1_3.sh [more flags]
# PROMPTS has one prompt per line. The same line of CONDITIONS has its images, separated by commas, or its video.
# Defaults: prompt.txt and conditional_pixel_values_path.txt here, or those in assets/i2v where there is no prompt.txt.
# The other variables are those of `sample` in scripts/lib/published.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../lib/published.sh"

folder=assets/i2v
if [ -f prompt.txt ]; then folder=.; fi
PROMPTS=${PROMPTS:-$folder/prompt.txt}
sample any93x640x640_i2v ./sample_videos/inpaint_93x640 \
    --model_type inpaint \
    --conditional_pixel_values_path "${CONDITIONS:-$folder/conditional_pixel_values_path.txt}" \
    --crop_for_hw \
    --noise_strength 0.0 \
    "$@"
