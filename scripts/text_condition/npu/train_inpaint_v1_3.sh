#!/usr/bin/env bash
# The published run on Ascend: bash scripts/text_condition/npu/train_inpaint_v1_3.sh [more flags]
# The variables are those of ../multi-devices/launch_training.sh and ../single-device/train_inpaint_v1_3.sh.
set -euo pipefail

exec bash "$(dirname "${BASH_SOURCE[0]}")/../multi-devices/launch_training.sh" train_inpaint_v1_3.sh "$@"
