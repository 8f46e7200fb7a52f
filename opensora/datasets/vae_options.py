"""The options of the training data of the VAE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Optional

from opensora.config.options import check_at_least_one, option


@dataclass(frozen=True)
class VAEDataOptions:
    """Clips of videos.

    Raises:
        UserError: a length, size or rate below 1.
    """

    group: ClassVar[str] = "data"

    video_path: str = option(help="folder of videos")
    data_file_path: Optional[str] = option(None, "csv file that lists the videos; default: all videos in the folder")
    video_column: str = option("video", "column of the csv file with the paths, relative to --video_path")
    num_frames: int = option(17, "frames of a clip, 4n+1", name="video_num_frames", flags=("--num_frames",))
    resolution: int = option(256, "height and width in pixels, a multiple of 8")
    sample_rate: int = option(2, "take every n-th frame")
    dynamic_sample: bool = option(
        False, "draw the rate of each clip at random from 1 to --sample_rate", takes_value=True
    )
    cache_dir: str = option("./cache_dir", "folder for the list of broken videos")

    def __post_init__(self):
        check_at_least_one(self, "num_frames", "resolution", "sample_rate")
