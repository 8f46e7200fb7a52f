#!/usr/bin/env bash
# Videos from prompts and given frames: bash scripts/text_condition/single-device/sample_inpaint_v1_3.sh [more flags]
# PROMPTS (prompt.txt) has a prompt a line, CONDITIONS (conditional_pixel_values_path.txt) in the same line its images,
# separated by commas, or its video; RUN is the script that starts sampling. The other variables are those of
# sample_t2v_93x640.sh.
set -euo pipefail

export PROMPTS=${PROMPTS:-prompt.txt} OUTPUT=${OUTPUT:-./sample_videos/inpaint_93x640}
exec bash "${RUN:-$(dirname "${BASH_SOURCE[0]}")/sample_t2v_93x640.sh}" \
    --model_type inpaint \
    --model_path "${WEIGHTS:-LanguageBind/Open-Sora-Plan-v1.3.0}/any93x640x640_i2v" \
    --conditional_pixel_values_path "${CONDITIONS:-conditional_pixel_values_path.txt}" \
    --crop_for_hw \
    --noise_strength 0.0 \
    "$@"
