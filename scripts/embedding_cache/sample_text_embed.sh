#!/usr/bin/env bash
# Embeds the captions of an annotation file with the text encoder:
#     CAPTIONS=caption.json OUTPUT=DIR bash scripts/embedding_cache/sample_text_embed.sh [more flags]
# scripts/_launch.sh lists the other environment variables.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../_launch.sh"

launch opensora/sample/sample_text_embed.py \
    --data_file_path "${CAPTIONS:?json list of objects with path and cap}" \
    --output_path "${OUTPUT:?folder for the embeddings}" \
    --text_encoder_name "$text_encoder" \
    --model_max_length 512 \
    --device "${DEVICE:-Ascend}" \
    "$@"
