# Images of several resolutions: python scripts/train.py THIS_FILE --data-path data.csv. What is not here is as in video.py.
_base_ = ["video.py"]

dataset = dict(frame_interval=1)
# Takes the place of the other file's buckets, where dicts are joined otherwise.
bucket_config = {
    "_delete_": True,
    "256": {1: (1.0, 256)},
    "512": {1: (0.8, 80)},
    "480p": {1: (0.5, 52)},
    "1024": {1: (0.5, 20)},
    "1080p": {1: (0.2, 8)},
}
mask_ratios = None
