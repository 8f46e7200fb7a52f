# Text-to-video training of PixArt, whose attention is over all frames: 16 frames of 256x256. Other fields are
# inherited.
#     python scripts/train.py configs/pixart/train/16x256x256.py --data-path data.csv
_base_ = ["../../opensora-v1-0/train/16x256x256.py"]

model = dict(type="PixArt-XL/2")
