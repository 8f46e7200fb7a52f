#!/usr/bin/env bash
# Stage 2, images and videos together, up to 93 frames and as many pixels as 640x640, every aspect:
#     PRETRAINED=./checkpoints/t2i_stage1/checkpoint-N/model bash scripts/text_condition/single-device/train_t2v_stage2.sh
# The variables are those of train_t2i_stage1.sh.
set -euo pipefail

${LAUNCH:-python} opensora/train/train_t2v_diffusers.py \
    --config scripts/train_configs/t2v.yaml \
    --data "${DATA:-scripts/train_data/merge_data.txt}" \
    --ae_path "${WEIGHTS:-LanguageBind/Open-Sora-Plan-v1.3.0}/vae" \
    --text_encoder_name_1 "${TEXT_ENCODER:-google/mt5-xxl}" \
    ${PRETRAINED:+--pretrained "$PRETRAINED"} \
    --num_frames 93 \
    --max_hxw $((640 * 640)) --min_hxw $((320 * 320)) \
    --sparse1d True --sparse_n 4 \
    --enable_tiling \
    --train_batch_size 1 \
    --start_learning_rate 2e-5 \
    --max_train_steps 300000 \
    --output_dir "${OUTPUT:-./checkpoints/t2v_stage2}" \
    --resume_from_checkpoint True \
    --device "${DEVICE:-Ascend}" \
    "$@"
