# Text-to-video sampling with Open-Sora v1.0 (STDiT): 64 frames of 512x512. There are no published weights of this size;
# give those of your own training. Other fields are inherited.
#     python scripts/inference.py configs/opensora-v1-0/inference/64x512x512.py --ckpt-path DIR
_base_ = ["16x512x512.py"]

num_frames = 64
fps = 12  # every second frame
model = dict(from_pretrained=None, time_scale=2 / 3)
batch_size = 1
