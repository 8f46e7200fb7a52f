# Text-to-image training of PixArt: images of 512x512. Other fields are inherited.
#     python scripts/train.py configs/pixart/train/1x512x512.py --data-path data.csv
_base_ = ["16x256x256.py"]

dataset = dict(num_frames=1, frame_interval=1, image_size=(512, 512))
batch_size = 32
model = dict(space_scale=1.0, no_temporal_pos_emb=True)
