# Text-to-image training of DiT with CLIP: images of 256x256. Other fields are inherited.
#     python scripts/train.py configs/dit/train/1x256x256.py --data-path data.csv
_base_ = ["16x256x256.py"]

dataset = dict(num_frames=1, frame_interval=1)
batch_size = 128
model = dict(no_temporal_pos_emb=True)
