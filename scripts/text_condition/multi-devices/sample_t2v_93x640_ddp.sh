#!/usr/bin/env bash
# Each process makes videos of its own: bash scripts/text_condition/multi-devices/sample_t2v_93x640_ddp.sh [more flags]
# WORKERS processes (8) meet at PORT (9000); the other variables are those of ../single-device/sample_t2v_93x640.sh.
set -euo pipefail
export OUTPUT=${OUTPUT:-./sample_videos/sora_93x640_mt5}

export LAUNCH="msrun --bind_core=True --worker_num=${WORKERS:-8} --local_worker_num=${WORKERS:-8}
    --master_port=${PORT:-9000} --log_dir=$OUTPUT/parallel_logs --join=True"
exec bash "$(dirname "${BASH_SOURCE[0]}")/../single-device/sample_t2v_93x640.sh" --use_parallel True "$@"
