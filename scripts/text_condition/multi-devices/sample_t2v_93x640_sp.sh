#!/usr/bin/env bash
# All processes share each video: bash scripts/text_condition/multi-devices/sample_t2v_93x640_sp.sh [more flags]
# The variables are those of sample_t2v_93x640_ddp.sh.
set -euo pipefail

exec bash "$(dirname "${BASH_SOURCE[0]}")/sample_t2v_93x640_ddp.sh" --sp_size "${WORKERS:-8}" "$@"
