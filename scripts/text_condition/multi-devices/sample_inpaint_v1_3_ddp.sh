#!/usr/bin/env bash
# Given frames, each process making videos of its own:
# bash scripts/text_condition/multi-devices/sample_inpaint_v1_3_ddp.sh [more flags]
# The variables are those of sample_t2v_93x640_ddp.sh and of ../single-device/sample_inpaint_v1_3.sh.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")

RUN=$here/sample_t2v_93x640_ddp.sh exec bash "$here/../single-device/sample_inpaint_v1_3.sh" "$@"
