#!/usr/bin/env bash
# ../single-device/train_t2i_stage1.sh on several devices; the variables are those of launch_training.sh too.
set -euo pipefail
exec bash "$(dirname "${BASH_SOURCE[0]}")/launch_training.sh" train_t2i_stage1.sh "$@"
