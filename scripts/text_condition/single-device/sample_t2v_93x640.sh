#!/usr/bin/env bash
# Videos of 93 frames, 352x640, from prompts: bash scripts/text_condition/single-device/sample_t2v_93x640.sh [more flags]
# The variables are those of `sample` in scripts/lib/published.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../lib/published.sh"

sample any93x640x640 ./sample_videos/sora_93x640_mt5 "$@"
