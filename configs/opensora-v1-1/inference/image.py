# Images: python scripts/inference.py THIS_FILE --ckpt-path DIR. What is not here is as in video.py.
_base_ = ["video.py"]

num_frames = 1
frame_interval = 1
image_size = (512, 512)
prompt = ["A lighthouse on a cliff at dusk, waves below, in oil."]
batch_size = 4
