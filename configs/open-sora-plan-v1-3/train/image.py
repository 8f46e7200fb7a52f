# Text-to-image training of Open-Sora-Plan v1.3. The other fields are inherited from video.py.
#     python scripts/train.py configs/open-sora-plan-v1-3/train/image.py
_base_ = ["video.py"]

dataset = dict(num_frames=1)
batch_size = 8
