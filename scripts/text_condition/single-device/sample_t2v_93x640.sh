#!/usr/bin/env bash
# Videos of 93 frames, 352x640, from prompts: bash scripts/text_condition/single-device/sample_t2v_93x640.sh [more flags]
# WEIGHTS is the folder of the published weights, TEXT_ENCODER that of mT5, PROMPTS a text or a .txt file, OUTPUT where
# results go, DEVICE Ascend or CPU, LAUNCH what starts the command in place of python.
set -euo pipefail
weights=${WEIGHTS:-LanguageBind/Open-Sora-Plan-v1.3.0}

${LAUNCH:-python} opensora/sample/sample.py \
    --model_path "$weights/any93x640x640" \
    --version v1_3 \
    --num_frames 93 \
    --height 352 \
    --width 640 \
    --text_encoder_name_1 "${TEXT_ENCODER:-google/mt5-xxl}" \
    --text_prompt "${PROMPTS:-examples/sora.txt}" \
    --ae WFVAEModel_D8_4x8x8 \
    --ae_path "$weights/vae" \
    --save_img_path "${OUTPUT:-./sample_videos/sora_93x640_mt5}" \
    --fps 18 \
    --guidance_scale 7.5 \
    --num_sampling_steps 100 \
    --max_sequence_length 512 \
    --sample_method EulerAncestralDiscrete \
    --seed 1234 \
    --num_samples_per_prompt 1 \
    --rescale_betas_zero_snr \
    --prediction_type v_prediction \
    --device "${DEVICE:-Ascend}" \
    --precision bf16 \
    "$@"
