# Text-to-image sampling with Open-Sora-Plan v1.3: images of 352x640. The other fields are inherited from video.py.
#     python scripts/inference.py configs/open-sora-plan-v1-3/inference/image.py
_base_ = ["video.py"]

num_frames = 1
prompt = ["A lighthouse on a cliff at dusk, waves below, in oil."]
