# Images with captions: python scripts/train.py THIS_FILE. What is not here is as in video.py.
_base_ = ["video.py"]

dataset = dict(num_frames=1)
batch_size = 8
