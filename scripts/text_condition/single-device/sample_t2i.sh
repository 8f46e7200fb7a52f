#!/usr/bin/env bash
# Images from prompts: bash scripts/text_condition/single-device/sample_t2i.sh [more flags]
# The variables are those of `sample` in scripts/lib/published.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../lib/published.sh"

sample any93x640x640 ./sample_images --num_frames 1 "$@"
