#!/usr/bin/env bash
# Sets up a fresh clone and samples videos from the demo model; two CPU cores are enough:
#     bash scripts/quickstart.sh ["a red circle moves right on a blue background" [more prompts]]
# Without prompts, it samples four videos from text and one from an image. Videos go to OUTPUT (default:
# ./quickstart_videos). The demo model was trained on circles, squares, triangles and stars in red, orange, yellow,
# green, blue, purple, black and white, which move left, right, up or down, turn, grow or shrink.
set -euo pipefail
output=$(realpath -m "${OUTPUT:-./quickstart_videos}")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh .venv
# shellcheck source=/dev/null
source .venv/bin/activate

model=examples/demo_model
sheet=$output/contact_sheet.png

sample() { # folder of the transformer, folder of the results, more flags
    python opensora/sample/sample.py --model_path "$model/$1" --ae_path $model/vae \
        --text_encoder_name_1 $model/text_encoder --save_img_path "$2" --num_frames 17 --height 64 --width 64 --fps 8 \
        --num_sampling_steps 50 --guidance_scale 4 --prediction_type v_prediction --rescale_betas_zero_snr \
        --prompt_template "{}" --negative_prompt "" --max_sequence_length 24 --device CPU "${@:3}"
}

if [ $# -gt 0 ]; then
    name=$(tr -cs '[:alnum:]\n' - <<< "$*")
    folders=("$output/${name:0:100}")
    sheet=${folders[0]}/contact_sheet.png
    sample transformer "${folders[0]}" --text_prompt "$@"
else
    folders=("$output/from_text" "$output/from_picture")
    sample transformer "${folders[0]}" --text_prompt $model/prompts.txt
    sample inpaint "${folders[1]}" --model_type i2v --crop_for_hw --text_prompt $model/picture_prompt.txt \
        --conditional_pixel_values_path $model/picture.png
fi

videos=()
for folder in "${folders[@]}"; do
    videos+=("$folder"/*_[0-9]*_gs*.mp4)
done
python examples/contact_sheet.py --output "$sheet" "${videos[@]}" > /dev/null
printf '%s\n' "videos:" "${videos[@]/#/    }" "contact sheet:" "    $sheet"
