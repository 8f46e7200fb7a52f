#!/usr/bin/env bash
# The inpaint model, every aspect up to 93 frames and 236544 pixels (480x480, 352x640):
#     PRETRAINED=LanguageBind/Open-Sora-Plan-v1.3.0/any93x640x640 \
#         bash scripts/text_condition/single-device/train_inpaint_v1_3.sh [more flags]
# The variables are those of train_t2i_stage1.sh; MODEL is the name or folder of the model's configuration.
set -euo pipefail

${LAUNCH:-python} opensora/train/train_inpaint.py \
    --config scripts/train_configs/t2v.yaml \
    --model "${MODEL:-OpenSoraInpaint_v1_3-2B/122}" \
    --data "${DATA:-scripts/train_data/merge_data.txt}" \
    --ae_path "${WEIGHTS:-LanguageBind/Open-Sora-Plan-v1.3.0}/vae" --vae_fp32 \
    --text_encoder_name_1 "${TEXT_ENCODER:-google/mt5-xxl}" \
    ${PRETRAINED:+--pretrained "$PRETRAINED"} \
    --mask_config "${MASK_CONFIG:-scripts/train_configs/mask_config.yaml}" \
    --add_noise_to_condition True \
    --default_text_ratio 0.5 \
    --num_frames 93 \
    --max_hxw 236544 --min_hxw 102400 \
    --sparse1d True --sparse_n 4 \
    --enable_tiling \
    --train_batch_size 1 \
    --start_learning_rate 1e-5 \
    --max_train_steps 1000000 \
    --output_dir "${OUTPUT:-./checkpoints/inpaint_v1_3}" \
    --resume_from_checkpoint True \
    --device "${DEVICE:-Ascend}" \
    "$@"
