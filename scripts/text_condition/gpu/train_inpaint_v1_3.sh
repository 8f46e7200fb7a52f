#!/usr/bin/env bash
# Training of the inpaint model: all aspect ratios up to 93 frames and 236544 pixels (480x480, 352x640).
# Published run on GPUs. ZeRO stage 2.
# MindSpore 2.7 has no build for GPUs. The script exits with an error unless DEVICE is Ascend or CPU.
#     PRETRAINED=LanguageBind/Open-Sora-Plan-v1.3.0/any93x640x640 \
#         bash scripts/text_condition/gpu/train_inpaint_v1_3.sh [more flags]
# MODEL is the name or folder of the model's configuration. MASK_CONFIG is the file with the ratios of the mask types.
# The published batch is 256 samples; --gradient_accumulation_steps reaches it on fewer devices.
# --nproc_per_node N, or the variable WORKERS, is the number of processes on this machine (8).
# scripts/_launch.sh lists the environment variables.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../_launch.sh"
DEVICE=${DEVICE:-GPU}

train opensora/train/train_inpaint.py inpaint.yaml ./checkpoints/inpaint_v1_3 \
    --nproc_per_node "${WORKERS:-8}" \
    --model "${MODEL:-OpenSoraInpaint_v1_3-2B/122}" \
    --vae_fp32 \
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
    "$@"
