#!/usr/bin/env bash
# Given frames, all processes sharing each video:
# bash scripts/text_condition/multi-devices/sample_inpaint_v1_3_sp.sh [more flags]
# The variables are those of sample_inpaint_v1_3_ddp.sh.
set -euo pipefail

exec bash "$(dirname "${BASH_SOURCE[0]}")/sample_inpaint_v1_3_ddp.sh" --sp "$@"
