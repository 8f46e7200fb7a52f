#!/usr/bin/env bash
# Stage 1 of WFVAE, clips of 25 frames at 256x256: bash scripts/causalvae/single-device/train.sh [more flags]
# VIDEOS is the folder of training videos, VAL_VIDEOS that of held-out ones (none: no validation), CONFIG the model's
# settings, PRETRAINED weights to start from, OUTPUT where results go, DEVICE Ascend or CPU, LAUNCH what starts the
# command in place of python. Started again, it goes on from its newest checkpoint.
set -euo pipefail

${LAUNCH:-python} opensora/train/train_causalvae.py \
    --model_name WFVAE \
    --model_config "${CONFIG:-scripts/causalvae/wfvae_8dim.json}" \
    ${PRETRAINED:+--pretrained_model_name_or_path "$PRETRAINED"} \
    --video_path "${VIDEOS:-./datasets/kinetics400/train}" \
    ${VAL_VIDEOS:+--validate --eval_video_path "$VAL_VIDEOS" --eval_num_frames 33} \
    --video_num_frames 25 \
    --resolution 256 \
    --sample_rate 1 \
    --train_batch_size 1 \
    --start_learning_rate 1e-5 \
    --lr_scheduler constant \
    --loss_type l1 \
    --kl_weight 1e-6 \
    --perceptual_weight 0 \
    --wavelet_loss --wavelet_weight 0.1 \
    --use_discriminator --disc_start 0 --disc_weight 0.5 \
    --use_ema --ema_decay 0.999 \
    --precision bf16 \
    --max_steps 800000 \
    --save_steps 5000 \
    --eval_steps 1000 \
    --print_losses \
    --output_dir "${OUTPUT:-./checkpoints/wfvae_stage1}" \
    --resume_from_checkpoint True \
    --device "${DEVICE:-Ascend}" \
    "$@"
