#!/usr/bin/env bash
# LPIPS between generated and real videos of the same file names. The weights: see --lpips_path of eval.py.
#   bash opensora/eval/script/cal_lpips.sh REAL_DIR GENERATED_DIR [more flags of eval.py]
set -euo pipefail
REAL=${1:-${REAL:?folder of real videos}}
GEN=${2:-${GEN:?folder of generated videos}}

python "$(dirname "${BASH_SOURCE[0]}")/../eval.py" \
    --metric lpips \
    --real_video_dir "$REAL" \
    --generated_video_dir "$GEN" \
    "${@:3}"
