# Text-to-image sampling with DiT and CLIP: images of 256x256. Other fields are inherited.
#     python scripts/inference.py configs/dit/inference/1x256x256.py --ckpt-path DIR
_base_ = ["16x256x256.py"]

num_frames = 1
model = dict(no_temporal_pos_emb=True)
