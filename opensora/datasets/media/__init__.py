"""Reading and writing videos and images: RGB uint8, (T, H, W, 3) or (H, W, 3), upright, with square pixels."""

from opensora.datasets.media.decord_reader import import_decord
from opensora.datasets.media.images import IMAGE_SUFFIXES, check_image_suffix, read_image, save_grid, save_image
from opensora.datasets.media.reader import BACKENDS, BATCH, VIDEO_SUFFIXES, VideoReader
from opensora.datasets.media.writer import WRITERS, check_video_suffix, write_video
from opensora.datasets.temporal_sampling import sample_indices

__all__ = [
    "BACKENDS",
    "BATCH",
    "IMAGE_SUFFIXES",
    "VIDEO_SUFFIXES",
    "WRITERS",
    "VideoReader",
    "check_image_suffix",
    "check_video_suffix",
    "read_image",
    "sample_indices",
    "save_grid",
    "save_image",
    "write_video",
]


def __getattr__(name: str):
    """`decord`: the module, or None if it is not installed; imported on first access."""
    if name != "decord":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return import_decord()
    except ValueError:
        return None
