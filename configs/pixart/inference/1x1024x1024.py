# Text-to-image sampling with the published PixArt of several sizes: images of about 1024x1024 pixels. image_size may
# have another aspect ratio. Other fields are inherited.
#     python scripts/inference.py configs/pixart/inference/1x1024x1024.py --ckpt-path PixArt-XL-2-1024-MS.pth
_base_ = ["1x256x256.py"]

image_size = (1024, 1024)
model = dict(type="PixArtMS-XL/2", from_pretrained="PixArt-XL-2-1024-MS.pth", space_scale=2.0)
