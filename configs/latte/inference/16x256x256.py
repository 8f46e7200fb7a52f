# Text-to-video sampling with Latte and CLIP: 16 frames of 256x256. There are no published weights; give those of your
# own training. Other fields are inherited.
#     python scripts/inference.py configs/latte/inference/16x256x256.py --ckpt-path DIR
_base_ = ["../../dit/inference/16x256x256.py"]

model = dict(type="Latte-XL/2")
