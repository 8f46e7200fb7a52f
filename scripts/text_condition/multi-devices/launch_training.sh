#!/usr/bin/env bash
# Runs a training script of ../single-device on several devices with ZeRO stage 2, on one machine or many:
#     bash scripts/text_condition/multi-devices/launch_training.sh train_t2v_stage3.sh [more flags]
# WORKERS processes a machine (8) meet at MASTER_ADDR:PORT (127.0.0.1:9000). For several machines run it on each, with
# NODES, how many there are, NODE_RANK, 0 on the one that has MASTER_ADDR, and OUTPUT on a disk that all of them see.
set -euo pipefail
script=$1
shift
name=${script%.sh}
export OUTPUT=${OUTPUT:-./checkpoints/${name#train_}}
nodes=${NODES:-1} workers=${WORKERS:-8}

export LAUNCH="msrun --bind_core=True --worker_num=$((nodes * workers)) --local_worker_num=$workers
    --master_addr=${MASTER_ADDR:-127.0.0.1} --master_port=${PORT:-9000} --node_rank=${NODE_RANK:-0}
    --log_dir=$OUTPUT/parallel_logs_${NODE_RANK:-0} --join=True"
exec bash "$(dirname "${BASH_SOURCE[0]}")/../single-device/$script" \
    --use_parallel True --parallel_mode zero --zero_stage 2 "$@"
