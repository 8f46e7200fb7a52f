#!/usr/bin/env bash
# Stage 1, images of 256x256: bash scripts/text_condition/single-device/train_t2i_stage1.sh [more flags]
# First as it is, with dense attention; then with SPARSE1D=True PRETRAINED=<the first run's checkpoint-N/model> and
# another OUTPUT, which turns dense attention into skiparse attention.
# DATA, WEIGHTS (for the autoencoder), TEXT_ENCODER, PRETRAINED, OUTPUT and DEVICE say where things are; LAUNCH is what
# starts the command in place of python. Started again, it goes on from its newest checkpoint.
set -euo pipefail

${LAUNCH:-python} opensora/train/train_t2v_diffusers.py \
    --config scripts/train_configs/t2v.yaml \
    --data "${DATA:-scripts/train_data/merge_data.txt}" \
    --ae_path "${WEIGHTS:-LanguageBind/Open-Sora-Plan-v1.3.0}/vae" \
    --text_encoder_name_1 "${TEXT_ENCODER:-google/mt5-xxl}" \
    ${PRETRAINED:+--pretrained "$PRETRAINED"} \
    --num_frames 1 \
    --force_resolution --max_height 256 --max_width 256 \
    --sparse1d "${SPARSE1D:-False}" --sparse_n 4 \
    --train_batch_size 16 \
    --start_learning_rate 2e-5 \
    --max_train_steps 100000 \
    --output_dir "${OUTPUT:-./checkpoints/t2i_stage1}" \
    --resume_from_checkpoint True \
    --device "${DEVICE:-Ascend}" \
    "$@"
