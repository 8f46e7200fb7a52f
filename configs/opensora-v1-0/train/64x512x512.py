# Text-to-video training of Open-Sora v1.0 (STDiT): 64 frames of 512x512, from the weights of 16x512x512. Other fields
# are inherited.
#     python scripts/train.py configs/opensora-v1-0/train/64x512x512.py --data-path data.csv
_base_ = ["16x512x512.py"]

dataset = dict(num_frames=64, frame_interval=2)
batch_size = 4
model = dict(from_pretrained="hpcai-tech/Open-Sora/OpenSora-v1-HQ-16x512x512.pth", time_scale=2 / 3)
ckpt_every = 250
