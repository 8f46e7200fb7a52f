#!/usr/bin/env bash
# 29 frames of 480x640 on several devices, each of which makes videos of its own. The other variables are those of
# ../single-device/sample_t2v_93x640.sh.
# --nproc_per_node N, or the variable WORKERS, is the number of processes on this machine (8).
set -euo pipefail
single_device=$(dirname "${BASH_SOURCE[0]}")/../single-device

OUTPUT=${OUTPUT:-./sample_videos/sora_29x480p_mt5} exec bash "$single_device/sample_t2v_93x640.sh" \
    --nproc_per_node "${WORKERS:-8}" \
    --num_frames 29 --height 480 --width 640 "$@"
