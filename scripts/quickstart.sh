#!/usr/bin/env bash
# From a fresh clone to a video in a minute or two, on a CPU, with the small demo model that comes along:
#     bash scripts/quickstart.sh "a red circle moves right on a blue background"
# Without a prompt it makes four videos, and a fifth that begins with a given picture. OUTPUT is where they go
# (./quickstart), GUIDANCE how closely they follow the prompt (4; 1: no guidance).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
model=examples/demo_model
output=${OUTPUT:-./quickstart}
bash scripts/setup.sh
source .venv/bin/activate

make() { # folder, further flags
    local folder=$1
    shift
    python opensora/sample/sample.py --ae_path $model/vae --text_encoder_name_1 $model/text_encoder \
        --prompt_template "{}" --negative_prompt "" --max_sequence_length 24 --num_frames 17 --height 64 --width 64 --fps 8 \
        --guidance_scale "${GUIDANCE:-4}" --num_sampling_steps 50 --rescale_betas_zero_snr \
        --device CPU --overwrite --save_img_path "$folder" "$@"
}

if [ $# -gt 0 ]; then
    rm -rf "$output/text_to_video"
    make "$output/text_to_video" --model_path $model/transformer --text_prompt "$@"
else
    rm -rf "$output/text_to_video" "$output/image_to_video"
    make "$output/text_to_video" --model_path $model/transformer --text_prompt examples/demo_model/prompts.txt
    make "$output/image_to_video" --model_path $model/inpaint --model_type inpaint --crop_for_hw \
        --conditional_pixel_values_path examples/demo_model/picture.png \
        --text_prompt "a purple star moves up on a yellow background"
fi
videos=("$output"/*/*.mp4)
printf '%s\n' "${videos[@]}"
python examples/contact_sheet.py --output "$output/contact_sheet.png" "${videos[@]}"
