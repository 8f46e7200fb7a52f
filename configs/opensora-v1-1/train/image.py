# Text-to-image training of Open-Sora v1.1 (STDiT2) in buckets of resolution. Other fields are inherited from video.py.
#     python scripts/train.py configs/opensora-v1-1/train/image.py --data-path data.csv
_base_ = ["video.py"]

dataset = dict(frame_interval=1)
# _delete_ replaces the buckets of video.py; without it, dicts are merged.
bucket_config = {
    "_delete_": True,
    "256": {1: (1.0, 256)},
    "512": {1: (0.8, 80)},
    "480p": {1: (0.5, 52)},
    "1024": {1: (0.5, 20)},
    "1080p": {1: (0.2, 8)},
}
mask_ratios = None
