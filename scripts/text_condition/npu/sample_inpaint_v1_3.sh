#!/usr/bin/env bash
# The published run on Ascend: bash scripts/text_condition/npu/sample_inpaint_v1_3.sh [more flags]
# What is --nproc_per_node elsewhere is WORKERS (8) here; with --sp they share each video. The other variables are those
# of ../multi-devices/sample_inpaint_v1_3_ddp.sh.
set -euo pipefail

exec bash "$(dirname "${BASH_SOURCE[0]}")/../multi-devices/sample_inpaint_v1_3_ddp.sh" "$@"
