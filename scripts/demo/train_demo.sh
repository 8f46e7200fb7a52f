#!/usr/bin/env bash
# Trains the demo model from scratch with the project's own commands:
#     bash scripts/demo/train_demo.sh [FOLDER]
# All results go to FOLDER (default: ./demo_training), the final weights to FOLDER/model. A repeated run resumes.
# Environment variables: DEVICE (CPU or Ascend), the numbers of training steps VAE_SHORT_STEPS, VAE_STEPS,
# DECODER_STEPS, IMAGE_STEPS, VIDEO_STEPS and INPAINT_STEPS, and PROMPTS, the number of prompts for the score.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
folder=${1:-./demo_training}
data=$folder/data
model=$folder/model
device=(--device "${DEVICE:-CPU}")
vae_short_steps=${VAE_SHORT_STEPS:-1500}
vae_steps=${VAE_STEPS:-3500}
decoder_steps=${DECODER_STEPS:-1300}
image_steps=${IMAGE_STEPS:-1500}
video_steps=${VIDEO_STEPS:-6000}
inpaint_steps=${INPAINT_STEPS:-2000}

stage() {
    echo "== $* ($(date +%H:%M))"
}

ema_weights() { # name of a finished training, its number of steps
    echo "$folder/$1/checkpoint-$2/model_ema"
}

stage "data and text encoder"
if [ ! -f "$data/held_out.txt" ]; then
    python tools/demo/make_data.py --output_dir "$data"
fi
if [ ! -f "$model/text_encoder/config.json" ]; then
    python tools/demo/make_text_encoder.py --output_dir "$model/text_encoder"
fi
embed() { # annotation, name of the data file
    python opensora/sample/sample_text_embed.py --data_file_path "$1" --output_path "$data/embeddings/$2" \
        --text_encoder_name "$model/text_encoder" --model_max_length 24 --batch_size 64 "${device[@]}"
}
embed "$data/train/pictures.json" train_pictures
embed "$data/train/captions.json" train
embed "$data/held_out/captions.json" held_out

train_vae() { # name, frames, steps, more flags
    local name=$1 frames=$2 steps=$3
    shift 3
    python opensora/train/train_causalvae.py \
        --video_path "$data/train/clips" --output_dir "$folder/$name" --video_num_frames "$frames" --resolution 64 \
        --sample_rate 1 --dataloader_num_workers 1 --loss_type l2 --perceptual_weight 0 --kl_weight 1e-6 \
        --lr_warmup_steps 30 --betas 0.9 0.99 --clip_grad --max_grad_norm 2500 \
        --use_ema --ema_decay 0.99 --max_steps "$steps" --save_steps 500 --checkpoints_total_limit 2 --print_losses \
        --validate --eval_video_path "$data/held_out/clips" --eval_num_frames 17 --eval_resolution 64 --eval_steps 500 \
        --eval_subset_size 20 --log_interval 50 --cache_dir "$folder/cache" --resume_from_checkpoint True \
        "${device[@]}" "$@"
}

stage "autoencoder: short clips"
train_vae vae_short 5 "$vae_short_steps" --model_config scripts/demo/wfvae.json --train_batch_size 8 \
    --start_learning_rate 1e-3 --lr_scheduler constant_with_warmup
stage "autoencoder: whole clips"
train_vae vae 17 "$vae_steps" --pretrained_model_name_or_path "$(ema_weights vae_short "$vae_short_steps")" \
    --train_batch_size 4 --start_learning_rate 5e-4 --lr_scheduler linear
stage "autoencoder: the decoder alone"
train_vae decoder 17 "$decoder_steps" --pretrained_model_name_or_path "$(ema_weights vae "$vae_steps")" \
    --freeze_encoder --train_batch_size 4 --start_learning_rate 4e-4 --lr_scheduler linear
if [ ! -f "$model/vae/config.json" ]; then
    rm -rf "$model/vae.part"
    cp -r "$(ema_weights decoder "$decoder_steps")" "$model/vae.part"
    python tools/ckpt/set_latent_scale.py --ae_path "$model/vae.part" --video_path "$data/train/clips" \
        --num_frames 17 --resolution 64 "${device[@]}"
    mv "$model/vae.part" "$model/vae"
fi

train() { # kind (t2v_diffusers or inpaint), name, data file, steps, more flags
    local kind=$1 name=$2 source=$3 steps=$4
    shift 4
    # With active waiting of OpenMP threads, a step in graph mode takes a seventh less time on otherwise idle cores.
    OMP_WAIT_POLICY=ACTIVE python "opensora/train/train_$kind.py" \
        --data "$data/$source.txt" --ae_path "$model/vae" --model_max_length 24 --output_dir "$folder/$name" \
        --group_data --force_resolution --max_height 64 --max_width 64 --hw_stride 16 --train_fps 8 \
        --dataloader_num_workers 1 \
        --mode 0 --sparse1d True --sparse_n 4 --prediction_type v_prediction --rescale_betas_zero_snr \
        --lr_warmup_steps 50 --adam_beta2 0.99 --adam_epsilon 1e-8 --cfg 0.1 \
        --use_ema --ema_decay 0.998 --max_train_steps "$steps" --checkpointing_steps 500 --checkpoints_total_limit 2 \
        --log_interval 50 --cache_dir "$folder/cache" --resume_from_checkpoint True "${device[@]}" "$@"
}

stage "transformer: images"
train t2v_diffusers images train_pictures "$image_steps" --model scripts/demo/transformer --num_frames 1 \
    --train_batch_size 64 --start_learning_rate 1e-3 --lr_scheduler constant_with_warmup --text_embed_cache
stage "transformer: videos"
train t2v_diffusers videos train "$video_steps" --pretrained "$(ema_weights images "$image_steps")" --num_frames 17 \
    --train_batch_size 16 --start_learning_rate 1e-3 --lr_scheduler linear --text_embed_cache
stage "inpaint model"
train inpaint inpaint train "$inpaint_steps" \
    --pretrained_transformer_model_path "$(ema_weights videos "$video_steps")" --num_frames 17 \
    --train_batch_size 16 --start_learning_rate 5e-4 --lr_scheduler linear \
    --mask_config scripts/train_configs/mask_config.yaml \
    --text_encoder_name_1 "$model/text_encoder" --default_text_ratio 0.1

stage "weights"
weights=diffusion_pytorch_model.safetensors
for name in videos:transformer:$video_steps inpaint:inpaint:$inpaint_steps; do
    IFS=: read -r training target steps <<< "$name"
    mkdir -p "$model/$target"
    cp "$(ema_weights "$training" "$steps")/config.json" "$model/$target/"
    python tools/ckpt/cast_safetensors.py -i "$(ema_weights "$training" "$steps")/$weights" -o "$model/$target/$weights"
done
stage "score"
python -m opensora.demo.score --count "${PROMPTS:-100}" --model_path "$model/transformer" --ae_path "$model/vae" \
    --text_encoder_name_1 "$model/text_encoder" --output_dir "$folder/score" "${device[@]}"
stage "done: $model"
