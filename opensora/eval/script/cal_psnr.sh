#!/usr/bin/env bash
# PSNR between generated and real videos of the same file names:
#   bash opensora/eval/script/cal_psnr.sh REAL_DIR GENERATED_DIR [more flags of eval.py]
set -euo pipefail
REAL=${1:-${REAL:?folder of real videos}}
GEN=${2:-${GEN:?folder of generated videos}}

python "$(dirname "${BASH_SOURCE[0]}")/../eval.py" \
    --metric psnr \
    --real_video_dir "$REAL" \
    --generated_video_dir "$GEN" \
    "${@:3}"
