# Text-to-image sampling with the published PixArt: images of 512x512. Other fields are inherited.
#     python scripts/inference.py configs/pixart/inference/1x512x512.py --ckpt-path PixArt-XL-2-512x512.pth
_base_ = ["1x256x256.py"]

image_size = (512, 512)
model = dict(from_pretrained="PixArt-XL-2-512x512.pth")
