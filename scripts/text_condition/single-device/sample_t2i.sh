#!/usr/bin/env bash
# Text-to-image sampling: images of 352x640.
#     bash scripts/text_condition/single-device/sample_t2i.sh [more flags]
# PROMPTS is one prompt or a .txt file with one prompt per line.
# scripts/_launch.sh lists the environment variables.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../_launch.sh"

sample any93x640x640 ./sample_images \
    --num_frames 1 \
    "$@"
