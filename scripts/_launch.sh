# shellcheck shell=bash
# Functions that start a command of the project. The other scripts source this file and call one of:
#
#   launch COMMAND.py FLAGS...                          any command
#   sample WEIGHTS_FOLDER DEFAULT_OUTPUT FLAGS...       sampling with Open-Sora-Plan v1.3
#   sample_older RELEASE WEIGHTS_FOLDER TEXT_ENCODER FLAGS...    sampling with Open-Sora-Plan v1.0.0, v1.1.0 or v1.2.0
#   train COMMAND.py CONFIG.yaml DEFAULT_OUTPUT FLAGS...    training of a diffusion transformer
#   train_wfvae DEFAULT_OUTPUT FLAGS...                 training of WFVAE
#   train_causal_vae CONFIG.json DEFAULT_OUTPUT FLAGS...    training of CausalVAE
#
# FLAGS are passed to the command and override the shared settings below. The last flag of a name wins.
# --nproc_per_node N among FLAGS starts N processes on this machine with msrun; without it, one process runs.
#
# Environment variables for all commands:
#   DEVICE                          Ascend (default) or CPU
#   LAUNCH                          program that runs in place of python and msrun. LAUNCH=echo prints the command.
#   NODES, NODE_RANK                number of machines (1) and the index of this one, from 0
#   MASTER_ADDR, PORT               address of the scheduler process (127.0.0.1:9000)
#   LOG_DIR                         folder for the logs of the processes (parallel_logs in the output folder)
# Environment variables for all but launch:
#   WEIGHTS, TEXT_ENCODER           folders of the published weights and of mT5
#   OUTPUT                          folder for results
#   PRETRAINED                      initial weights for training
weights=${WEIGHTS:-LanguageBind/Open-Sora-Plan-v1.3.0}
text_encoder=${TEXT_ENCODER:-google/mt5-xxl}
data_flags=()

fail() {
    echo "error: $*" >&2
    exit 2
}

# Sets `nproc` to the value of --nproc_per_node (empty without the flag), `flags` to the other flags, and `device` and
# `results` to the device and the output folder that they name.
parse_launch_flags() {
    nproc='' device=${DEVICE:-} results=.
    flags=()
    while [ $# -gt 0 ]; do
        case $1 in
            --nproc[-_]per[-_]node) nproc=${2:-missing}; shift ;;
            --nproc[-_]per[-_]node=*) nproc=${1#*=} ;;
            *)
                case $1 in
                    --device=*) device=${1#*=} ;;
                    --device) device=${2:-} ;;
                    --output_dir=* | --save_img_path=* | --generated_video_dir=* | --output_path=*) results=${1#*=} ;;
                    --output_dir | --save_img_path | --generated_video_dir | --output_path) results=${2:-.} ;;
                esac
                flags+=("$1")
                ;;
        esac
        shift $(($# > 0))
    done
    if [ -n "$nproc" ] && ! [[ $nproc =~ ^[1-9][0-9]*$ ]]; then
        fail "--nproc_per_node $nproc: should be the number of processes on this machine, 1 or more"
    fi
}

launch() {
    parse_launch_flags "$@"
    if [ "$device" = GPU ]; then
        fail "MindSpore 2.7 has no build for GPUs; set DEVICE=Ascend or DEVICE=CPU"
    fi
    local -a program
    read -ra program <<< "${LAUNCH:-python}"
    if [ -z "$nproc" ]; then
        exec "${program[@]}" "${flags[@]}"
    fi
    set -- "${flags[0]}" --use_parallel True "${flags[@]:1}"
    if [ -n "${LAUNCH:-}" ]; then
        exec "${program[@]}" "$@"
    fi
    local nodes=${NODES:-1} rank=${NODE_RANK:-0}
    local log_dir=${LOG_DIR:-$results/parallel_logs$( ((nodes == 1)) || echo "_$rank")}
    exec python -m opensora.launch --bind_core=True --worker_num=$((nodes * nproc)) --local_worker_num="$nproc" \
        --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-9000}" --node_rank="$rank" \
        --log_dir="$log_dir" --join=True "$@"
}

# PROMPTS is one prompt or a .txt file with one prompt per line.
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

# PROMPTS is one prompt or a .txt file with one prompt per line.
sample_older() {
    local release=${WEIGHTS:-LanguageBind/Open-Sora-Plan-$1}
    launch opensora/sample/sample.py \
        --model_path "$release/$2" \
        --ae_path "$release/vae" \
        --text_encoder_name "${TEXT_ENCODER:-$3}" \
        --text_prompt "${PROMPTS:-examples/sora.txt}" \
        --save_img_path "${OUTPUT:-./sample_videos/$1_$2}" \
        --fps 24 \
        --device "${DEVICE:-Ascend}" \
        "${@:4}"
}

# Sets the defaults of PROMPTS and CONDITIONS for sampling with the inpaint model: prompt.txt and
# conditional_pixel_values_path.txt in the current directory, or the examples in assets/i2v if it has no prompt.txt.
set_inpaint_inputs() {
    local folder=assets/i2v
    if [ -f prompt.txt ]; then folder=.; fi
    PROMPTS=${PROMPTS:-$folder/prompt.txt}
    CONDITIONS=${CONDITIONS:-$folder/conditional_pixel_values_path.txt}
}

# DATA is the text file that lists the training data; a script whose data have another form sets `data_flags` instead.
# A repeated run resumes from the newest checkpoint in OUTPUT.
# Several processes use ZeRO stage 2.
train() {
    parse_launch_flags "$@"
    if [ ${#data_flags[@]} = 0 ]; then
        data_flags=(--data "${DATA:-scripts/train_data/merge_data.txt}")
    fi
    launch "$1" \
        --config "scripts/train_configs/$2" \
        "${data_flags[@]}" \
        --ae_path "$weights/vae" \
        --text_encoder_name_1 "$text_encoder" \
        ${PRETRAINED:+--pretrained "$PRETRAINED"} \
        --output_dir "${OUTPUT:-$3}" \
        --resume_from_checkpoint True \
        --device "${DEVICE:-Ascend}" \
        ${nproc:+--parallel_mode zero --zero_stage 2} \
        "${@:4}"
}

# The shared settings of all autoencoders.
# VIDEOS is the folder of training videos, VAL_VIDEOS the folder of held-out videos (no validation if unset). A repeated run resumes from the newest checkpoint in OUTPUT. The published batch is eight clips:
# one on each of eight devices, or accumulated over several steps on fewer.
train_vae() {
    parse_launch_flags "$@"
    local processes=$((${nproc:-1} * ${NODES:-1}))
    launch opensora/train/train_causalvae.py \
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
        --use_discriminator --disc_weight 0.5 \
        --precision bf16 \
        --eval_steps 1000 \
        --print_losses \
        --output_dir "${OUTPUT:-$1}" \
        --resume_from_checkpoint True \
        --device "${DEVICE:-Ascend}" \
        "${@:2}"
}

# CONFIG is the model's config.json.
train_wfvae() {
    train_vae "$1" \
        --model_name WFVAE \
        --model_config "${CONFIG:-scripts/causalvae/wfvae_8dim.json}" \
        --wavelet_loss --wavelet_weight 0.1 \
        --disc_start 0 \
        --use_ema --ema_decay 0.999 \
        --save_steps 5000 \
        "${@:2}"
}

# CONFIG replaces the model's config.json of that name in scripts/causalvae. LPIPS is the path of its weights.
train_causal_vae() {
    train_vae "$2" \
        --model_name CausalVAE \
        --model_config "${CONFIG:-scripts/causalvae/$1}" \
        --perceptual_weight 1 --lpips_path "${LPIPS:-pretrained/lpips_vgg-426bf45c.ckpt}" \
        "${@:3}"
}
