# What the published runs have in common. The scripts source this file; flags that they add win over those given here.
# WEIGHTS is the folder of the published weights, TEXT_ENCODER that of mT5, DEVICE Ascend or CPU.
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
weights=${WEIGHTS:-LanguageBind/Open-Sora-Plan-v1.3.0}
text_encoder=${TEXT_ENCODER:-google/mt5-xxl}

# Sampling with the weights of a folder, from the prompts in PROMPTS (a text or a .txt file), with results in OUTPUT:
#   sample FOLDER DEFAULT_OUTPUT FLAGS...
sample() {
    launch opensora/sample/sample.py \
        --model_path "$weights/$1" \
        --version v1_3 \
        --num_frames 93 \
        --height 352 \
        --width 640 \
        --text_encoder_name_1 "$text_encoder" \
        --text_prompt "${PROMPTS:-examples/sora.txt}" \
        --ae WFVAEModel_D8_4x8x8 \
        --ae_path "$weights/vae" \
        --save_img_path "${OUTPUT:-$2}" \
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
        "${@:3}"
}

# Training of a diffusion transformer: train COMMAND.py CONFIG.yaml DEFAULT_OUTPUT FLAGS...
# DATA is the text file that lists the training data, PRETRAINED the weights to start from, OUTPUT the folder of
# results. Started again, training resumes from its newest checkpoint. With several processes it runs ZeRO stage 2.
train() {
    read_launch_flags "$@"
    launch "$1" \
        --config "scripts/train_configs/$2" \
        --data "${DATA:-scripts/train_data/merge_data.txt}" \
        --ae_path "$weights/vae" \
        --text_encoder_name_1 "$text_encoder" \
        ${PRETRAINED:+--pretrained "$PRETRAINED"} \
        --output_dir "${OUTPUT:-$3}" \
        --resume_from_checkpoint True \
        --device "${DEVICE:-Ascend}" \
        ${nproc:+--parallel_mode zero --zero_stage 2} \
        "${@:4}"
}

# Training of WFVAE: train_wfvae DEFAULT_OUTPUT FLAGS...
# VIDEOS is the folder of training videos, VAL_VIDEOS that of held-out ones (none: no validation), CONFIG the model's
# configuration, PRETRAINED weights to start from, OUTPUT the folder of results. Started again, training resumes from its
# newest checkpoint. A step has eight clips, as published: one on each of eight devices, or eight in turn on one.
train_wfvae() {
    read_launch_flags "$@"
    local processes=$((${nproc:-1} * ${NODES:-1}))
    launch opensora/train/train_causalvae.py \
        --model_name WFVAE \
        --model_config "${CONFIG:-scripts/causalvae/wfvae_8dim.json}" \
        ${PRETRAINED:+--pretrained_model_name_or_path "$PRETRAINED"} \
        --video_path "${VIDEOS:-./datasets/kinetics400/train}" \
        ${VAL_VIDEOS:+--validate --eval_video_path "$VAL_VIDEOS" --eval_num_frames 33} \
        --resolution 256 \
        --train_batch_size 1 \
        --gradient_accumulation_steps $((processes < 8 ? 8 / processes : 1)) \
        --start_learning_rate 1e-5 \
        --lr_scheduler constant \
        --loss_type l1 \
        --kl_weight 1e-6 \
        --wavelet_loss --wavelet_weight 0.1 \
        --use_discriminator --disc_start 0 --disc_weight 0.5 \
        --use_ema --ema_decay 0.999 \
        --precision bf16 \
        --save_steps 5000 \
        --eval_steps 1000 \
        --print_losses \
        --output_dir "${OUTPUT:-$1}" \
        --resume_from_checkpoint True \
        --device "${DEVICE:-Ascend}" \
        "${@:2}"
}
