#!/usr/bin/env bash
# Each process makes videos of its own: bash scripts/text_condition/multi-devices/sample_t2v_93x640_ddp.sh [more flags]
# WORKERS processes (8); the other variables are those of ../single-device/sample_t2v_93x640.sh.
set -euo pipefail
weights=${WEIGHTS:-LanguageBind/Open-Sora-Plan-v1.3.0}
output=${OUTPUT:-./sample_videos/sora_93x640_mt5}

msrun --bind_core=True --worker_num="${WORKERS:-8}" --local_worker_num="${WORKERS:-8}" \
    --master_port="${PORT:-9000}" --log_dir="$output/parallel_logs" --join=True \
    opensora/sample/sample.py \
    --model_path "$weights/any93x640x640" \
    --version v1_3 \
    --num_frames 93 \
    --height 352 \
    --width 640 \
    --text_encoder_name_1 "${TEXT_ENCODER:-google/mt5-xxl}" \
    --text_prompt "${PROMPTS:-examples/sora.txt}" \
    --ae WFVAEModel_D8_4x8x8 \
    --ae_path "$weights/vae" \
    --save_img_path "$output" \
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
    --use_parallel True \
    "$@"
