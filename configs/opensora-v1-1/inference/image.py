# Text-to-image sampling with Open-Sora v1.1 (STDiT2): images of 512x512. The other fields are inherited from video.py.
#     python scripts/inference.py configs/opensora-v1-1/inference/image.py --ckpt-path DIR
_base_ = ["video.py"]

num_frames = 1
frame_interval = 1
image_size = (512, 512)
prompt = ["A lighthouse on a cliff at dusk, waves below, in oil."]
batch_size = 4
