#!/usr/bin/env bash
# The published run on GPUs, with a MindSpore built for them: bash scripts/text_condition/gpu/train_inpaint_v1_3.sh
# [more flags]. The variables are those of ../npu/train_inpaint_v1_3.sh.
set -euo pipefail

DEVICE=${DEVICE:-GPU} exec bash "$(dirname "${BASH_SOURCE[0]}")/../npu/train_inpaint_v1_3.sh" "$@"
