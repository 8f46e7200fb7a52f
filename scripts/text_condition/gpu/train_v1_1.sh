#!/usr/bin/env bash
# Published run on GPUs of ../npu/train_v1_1.sh, which describes the stages and the variables:
#     STAGE=... PRETRAINED=... bash scripts/text_condition/gpu/train_v1_1.sh [more flags]
# MindSpore 2.7 has no build for GPUs. The script exits with an error unless DEVICE is Ascend or CPU.
set -euo pipefail
DEVICE=${DEVICE:-GPU} exec bash "$(dirname "${BASH_SOURCE[0]}")/../npu/train_v1_1.sh" "$@"
