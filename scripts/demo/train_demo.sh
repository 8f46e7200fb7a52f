#!/usr/bin/env bash
# Trains the demo model from scratch with the project's own commands:
#     bash scripts/demo/train_demo.sh [FOLDER]
# All results go to FOLDER (default: ./demo_training), the final weights to FOLDER/model. A repeated run resumes, also
# within a stage: `timeout 2h bash scripts/demo/train_demo.sh` trains for two hours and saves a checkpoint.
# Environment variables: DEVICE (CPU or Ascend); UNTIL, a stage (data, vae, latents, images, videos, inpaint) to stop
# after; AUTOENCODER, a folder of a trained autoencoder to use, such as scripts/demo/autoencoder;
# VAE_PRETRAINED, a folder of WFVAE weights to begin with instead of the stage of short clips; the numbers of training
# steps VAE_SHORT_STEPS, VAE_STEPS, DECODER_STEPS (0: none), IMAGE_STEPS, VIDEO_STEPS and INPAINT_STEPS; CLIPS,
# IMAGES and DETAILS, the numbers of samples; PROMPTS, the number of prompts for the score.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
folder=${1:-./demo_training}
data=$folder/data
model=$folder/model
device=(--device "${DEVICE:-CPU}")
vae_short_steps=${VAE_SHORT_STEPS:-1500}
vae_steps=${VAE_STEPS:-6000}
decoder_steps=${DECODER_STEPS:-0}
image_steps=${IMAGE_STEPS:-1500}
video_steps=${VIDEO_STEPS:-6000}
inpaint_steps=${INPAINT_STEPS:-2000}

stage() {
    echo "== $* ($(date +%H:%M))"
}

end_of() { # name of a stage
    if [ "${UNTIL:-}" = "$1" ]; then
        stage "stopped after $1"
        exit 0
    fi
}

ema_weights() { # name of a finished training, its number of steps
    echo "$folder/$1/checkpoint-$2/model_ema"
}

stage "data and text encoder"
if [ ! -f "$data/held_out.txt" ]; then
    python tools/demo/make_data.py --output_dir "$data" --world large --clips "${CLIPS:-6000}" \
        --pictures "${IMAGES:-6000}" --details "${DETAILS:-3000}" --held_out 200
fi
if [ ! -f "$model/text_encoder/config.json" ]; then
    python tools/demo/make_text_encoder.py --output_dir "$model/text_encoder"
fi
end_of data

train_vae() { # name, frames, steps, more flags
    local name=$1 frames=$2 steps=$3
    shift 3
    # The samples are parts of clips of 64 x 64 pixels; the held-out ones are whole, of 128 x 128.
    python opensora/train/train_causalvae.py \
        --video_path "$data/train/details" --output_dir "$folder/$name" --video_num_frames "$frames" --resolution 64 \
        --sample_rate 1 --dataloader_num_workers 1 --loss_type l2 --perceptual_weight 0 --kl_weight 1e-4 \
        --lr_warmup_steps 30 --betas 0.9 0.99 --clip_grad --max_grad_norm 2500 \
        --use_ema --ema_decay 0.99 --max_steps "$steps" --save_steps 50 --checkpoints_total_limit 2 --print_losses \
        --validate --eval_video_path "$data/held_out/clips" --eval_num_frames 17 --eval_resolution 128 \
        --eval_steps 500 --eval_subset_size 20 --log_interval 50 --cache_dir "$folder/cache" \
        --resume_from_checkpoint True "${device[@]}" "$@"
}

autoencoder=$folder/autoencoder # with the scale of the latents
if [ ! -f "$autoencoder/config.json" ]; then
    rm -rf "$autoencoder.part"
    if [ -n "${AUTOENCODER:-}" ]; then
        cp -r "$AUTOENCODER" "$autoencoder.part"
    else
        if [ -z "${VAE_PRETRAINED:-}" ]; then
            stage "autoencoder: short clips"
            train_vae vae_short 5 "$vae_short_steps" --model_config scripts/demo/wfvae.json --train_batch_size 8 \
                --start_learning_rate 1e-3 --lr_scheduler constant_with_warmup
        fi
        stage "autoencoder: whole clips"
        # With a learning rate of 7e-4 the loss of a well trained autoencoder rises.
        train_vae vae 17 "$vae_steps" --train_batch_size 4 --start_learning_rate 3e-4 --lr_scheduler linear \
            --pretrained_model_name_or_path "${VAE_PRETRAINED:-$(ema_weights vae_short "$vae_short_steps")}"
        cp -r "$(ema_weights vae "$vae_steps")" "$autoencoder.part"
        python tools/ckpt/set_latent_scale.py --ae_path "$autoencoder.part" --video_path "$data/train/clips" \
            --num_frames 17 --resolution 128 "${device[@]}"
    fi
    mv "$autoencoder.part" "$autoencoder"
fi
end_of vae

size=(--max_height 128 --max_width 128 --force_resolution --hw_stride 16 --train_fps 8 --group_data \
    --model_max_length 24 --cache_dir "$folder/cache" --dataloader_num_workers 1)
encode() { # name of the cache, data file, frames, more flags
    python -m opensora.cli encode --data "$data/$2.txt" --num_frames "$3" "${size[@]}" --ae_path "$autoencoder" \
        --text_encoder_name_1 "$model/text_encoder" --output "$folder/latents/$1" --batch_size 4 "${device[@]}" "${@:4}"
}

stage "latents"
encode images train_pictures 1
encode clips train 17
end_of latents

train() { # kind (t2v_diffusers or inpaint), name, data file, cache, frames, steps, more flags
    # With active waiting of OpenMP threads, a step in graph mode takes a seventh less time on otherwise idle cores.
    OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-ACTIVE} python "opensora/train/train_$1.py" \
        --data "$data/$3.txt" --latent_cache "$folder/latents/$4" --num_frames "$5" "${size[@]}" \
        --output_dir "$folder/$2" --mode 0 --prediction_type v_prediction \
        --v1_5_scheduler --rescale_betas_zero_snr --lr_warmup_steps 50 --adam_beta2 0.99 --adam_epsilon 1e-8 --cfg 0.1 \
        --use_ema --ema_decay 0.998 --max_train_steps "$6" --checkpointing_steps 200 --checkpoints_total_limit 2 \
        --log_interval 50 --resume_from_checkpoint True "${device[@]}" "${@:7}"
}

stage "transformer: images"
train t2v_diffusers images train_pictures images 1 "$image_steps" --model scripts/demo/transformer \
    --train_batch_size 64 --start_learning_rate 1e-3 --lr_scheduler linear
end_of images
stage "transformer: videos"
train t2v_diffusers videos train clips 17 "$video_steps" --pretrained "$(ema_weights images "$image_steps")" \
    --train_batch_size 16 --start_learning_rate 6e-4 --lr_scheduler linear
end_of videos
stage "inpaint model"
encode inpaint train 17 --dataset inpaint --mask_config scripts/train_configs/mask_config.yaml --crops 2
train inpaint inpaint train inpaint 17 "$inpaint_steps" \
    --pretrained_transformer_model_path "$(ema_weights videos "$video_steps")" \
    --train_batch_size 16 --start_learning_rate 5e-4 --lr_scheduler linear \
    --mask_config scripts/train_configs/mask_config.yaml --default_text_ratio 0.1
end_of inpaint

if [ "$decoder_steps" -gt 0 ]; then
    stage "autoencoder: the decoder alone"
    train_vae decoder 17 "$decoder_steps" --pretrained_model_name_or_path "$autoencoder" \
        --freeze_encoder --train_batch_size 4 --start_learning_rate 4e-4 --lr_scheduler linear
    autoencoder=$(ema_weights decoder "$decoder_steps")
fi
stage "weights"
release() { # folder of the weights, name in the model
    local weights=diffusion_pytorch_model.safetensors
    mkdir -p "$model/$2"
    cp "$1/config.json" "$model/$2/"
    python tools/ckpt/cast_safetensors.py -i "$1/$weights" -o "$model/$2/$weights"
}
release "$autoencoder" vae
release "$(ema_weights videos "$video_steps")" transformer
release "$(ema_weights inpaint "$inpaint_steps")" inpaint
stage "score"
python -m opensora.demo.score --count "${PROMPTS:-200}" --model_path "$model/transformer" --ae_path "$model/vae" \
    --text_encoder_name_1 "$model/text_encoder" --output_dir "$folder/score" "${device[@]}"
stage "done: $model"
