#!/usr/bin/env bash
# Embeds the captions of an annotation file: CAPTIONS=caption.json OUTPUT=DIR bash scripts/embedding_cache/sample_text_embed.sh
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../lib/launch.sh"

launch opensora/sample/sample_text_embed.py \
    --data_file_path "${CAPTIONS:?json list of objects with path and cap}" \
    --output_path "${OUTPUT:?folder for the embeddings}" \
    --text_encoder_name "${TEXT_ENCODER:-google/mt5-xxl}" \
    --model_max_length 512 \
    --device "${DEVICE:-Ascend}" \
    "$@"
