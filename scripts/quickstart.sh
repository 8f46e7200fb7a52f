#!/usr/bin/env bash
# From a fresh clone to a video, on two CPU cores: bash scripts/quickstart.sh "a red circle moves right on a blue background"
# Several prompts may be given; without any it makes four, and brings a picture to life. OUTPUT (./quickstart_videos) is
# where the videos go. The demo model knows circles, squares, triangles and stars in red, orange, yellow, green, blue,
# purple, black and white, that move left, right, up or down, turn, grow or shrink.
set -euo pipefail
here=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh .venv
source .venv/bin/activate

model=examples/demo_model
output=$(realpath -m --relative-to=. "$(cd "$here" && realpath -m "${OUTPUT:-./quickstart_videos}")")

sample() { # folder, further flags
    local folder=$1
    shift
    python opensora/sample/sample.py --ae_path $model/vae --text_encoder_name_1 $model/text_encoder \
        --num_frames 17 --height 64 --width 64 --fps 8 --num_sampling_steps 50 --guidance_scale 4 --rescale_betas_zero_snr \
        --prompt_template "{}" --negative_prompt "" --max_sequence_length 24 --device CPU --save_img_path "$folder" "$@"
}

name_of() { # prompts, as a folder's name
    local name
    name=$(tr -cs '[:alnum:]' '-' <<< "$*")
    echo "${name:0:100}"
}

if [ $# -gt 0 ]; then
    videos=$output/$(name_of "$@")
    sample "$videos" --model_path $model/transformer --text_prompt "$@"
else
    videos=$output/four
    sample "$videos" --model_path $model/transformer --text_prompt $model/prompts.txt
    sample "$output/from_picture" --model_type i2v --model_path $model/inpaint --crop_for_hw \
        --text_prompt "a purple star moves right on a yellow background" --conditional_pixel_values_path $model/picture.png
    set -- "$output/from_picture"/*.mp4
fi
