# Images: python scripts/inference.py THIS_FILE. What is not here is as in video.py.
_base_ = ["video.py"]

num_frames = 1
prompt = ["A lighthouse on a cliff at dusk, waves below, in oil."]
