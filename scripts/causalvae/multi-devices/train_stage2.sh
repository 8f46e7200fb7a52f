#!/usr/bin/env bash
# ../single-device/train_stage2.sh on several devices, WORKERS (8) of them, which meet at PORT (9000): each trains on clips of its
# own, and gradients are averaged.
set -euo pipefail
OUTPUT=${OUTPUT:-./checkpoints/wfvae_stage2}

export OUTPUT LAUNCH="msrun --bind_core=True --worker_num=${WORKERS:-8} --local_worker_num=${WORKERS:-8}
    --master_port=${PORT:-9000} --log_dir=$OUTPUT/parallel_logs --join=True"
exec bash "$(dirname "${BASH_SOURCE[0]}")/../single-device/train_stage2.sh" --use_parallel True "$@"
