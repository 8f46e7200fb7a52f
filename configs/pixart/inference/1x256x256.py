# Text-to-image sampling with the published PixArt: images of 256x256. Other fields are inherited.
#     python scripts/inference.py configs/pixart/inference/1x256x256.py --ckpt-path PixArt-XL-2-256x256.pth
_base_ = ["16x256x256.py"]

num_frames = 1
model = dict(from_pretrained="PixArt-XL-2-256x256.pth", space_scale=1.0, no_temporal_pos_emb=True)
