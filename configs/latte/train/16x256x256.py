# Text-to-video training of Latte with CLIP: 16 frames of 256x256. It starts from the published model of UCF101, whose
# embedding of classes is replaced by a new one of texts. Other fields are inherited.
#     python scripts/train.py configs/latte/train/16x256x256.py --data-path data.csv
_base_ = ["../../dit/train/16x256x256.py"]

model = dict(type="Latte-XL/2", from_pretrained="Latte-XL-2-256x256-ucf101.pt")
