#!/usr/bin/env bash
# Images from prompts: bash scripts/text_condition/single-device/sample_t2i.sh [more flags]
# The variables are those of sample_t2v_93x640.sh.
set -euo pipefail

OUTPUT=${OUTPUT:-./sample_images} exec bash "$(dirname "${BASH_SOURCE[0]}")/sample_t2v_93x640.sh" \
    --num_frames 1 \
    "$@"
