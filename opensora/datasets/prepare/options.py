"""The options of `opensora prepare`."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar, Optional

from opensora.config.options import check_at_least_one, option, option_of
from opensora.datasets.t2v.options import T2VDataOptions
from opensora.errors import UserError

DEFAULT_OUTPUT = "prepared"  # in the folder of the clips


@dataclass(frozen=True)
class PrepareOptions:
    """Where the clips, their captions and the results are.

    Raises:
        UserError: values out of range, or paths that a data file cannot hold.
    """

    folder: str = option(help="folder of videos and images, which may be in subfolders", positional=True)
    output: Optional[str] = option(None, f"folder for the results; default: FOLDER/{DEFAULT_OUTPUT}")
    captions: Optional[str] = option(
        None,
        "csv or jsonl file with a path (or file, video) and a caption (or text, cap) in each row, paths relative to "
        "FOLDER; default: the .txt file beside each clip",
    )
    caption: Optional[str] = option(None, "caption of the files that have no other")
    scene_cuts: bool = option(True, "make a sample of each scene of a video instead of the whole", takes_value=True)
    max_seconds: Optional[float] = option(
        None, "divide longer scenes into equal segments of at most this length; default: keep them whole"
    )
    sheet_pages: int = option(10, "most pages of contact sheets, of 20 samples each; 0: none")

    def __post_init__(self):
        if self.caption is not None and not self.caption.strip():
            raise UserError("--caption is empty: give a text, or leave the flag out")
        if self.max_seconds is not None and self.max_seconds <= 0:
            raise UserError(f"--max_seconds {self.max_seconds:g}: should be more than 0")
        if self.sheet_pages < 0:
            raise UserError(f"--sheet_pages {self.sheet_pages}: should be 0 or more")
        if self.output_folder == self.root:
            raise UserError(
                f"--output {self.output}: is the folder of the clips, whose .txt files are captions; choose another, "
                f"such as {self.root / DEFAULT_OUTPUT}"
            )
        for path in (self.root, self.output_folder):
            _check_path(str(path))

    @property
    def root(self) -> Path:
        """The folder of the clips, absolute."""
        return Path(os.path.abspath(self.folder))

    @property
    def output_folder(self) -> Path:
        """The folder for the results, absolute."""
        return self.root / DEFAULT_OUTPUT if self.output is None else Path(os.path.abspath(self.output))


@dataclass(frozen=True)
class SelectionFlags(T2VDataOptions):
    """The flags of training that decide which samples are used. The other fields are no flags of this command."""

    group: ClassVar[str] = "the run of training whose samples are reported"

    data: Optional[str] = ""
    data_path: Optional[str] = None
    video_data: Optional[str] = None
    sample_rate: int = 1
    use_image_num: int = 0
    use_img_from_vid: bool = False
    image_data: Optional[str] = None
    max_image_size: Optional[int] = None
    max_hxw: Optional[int] = option_of(T2VDataOptions, "max_hxw", 102400)
    group_data: bool = False
    total_batch_size: int = option(
        1, "samples of an optimizer step: processes x --train_batch_size x --gradient_accumulation_steps"
    )
    cfg: Optional[float] = None
    model_max_length: int = 512
    text_embed_cache: bool = False
    cache_dir: str = ""
    sp_size: int = option(1, "processes that share a video")

    def __post_init__(self):
        check_at_least_one(self, "total_batch_size", "sp_size", "hw_stride", "train_fps")
        super().__post_init__()

    def command_line(self) -> str:
        """The flags that training needs to select the same samples."""
        words = []
        for field in fields(self):
            value = getattr(self, field.name)
            unused = (
                ("max_hxw", "min_hxw") if self.force_resolution else ("max_height", "max_width", "force_resolution")
            )
            if "option" not in field.metadata or field.name in (*unused, "total_batch_size"):
                continue
            sets_size = field.name in ("num_frames", "max_height", "max_width", "max_hxw")
            if sets_size or value != getattr(T2VDataOptions, field.name):
                words.append(f"--{field.name}" if value is True else f"--{field.name} {value}")
        return " ".join(words)


def _check_path(path: str) -> None:
    """Raises UserError if a line of a data file cannot hold this path: its fields have no quotes."""
    try:
        path.encode()
        is_text = True
    except UnicodeEncodeError:
        is_text = False
    if not is_text or "," in path or len(f"{path}.".splitlines()) > 1 or path != path.strip():
        raise UserError(
            f"{path!r}: a data file cannot hold a path with a comma, a line break, a space at its end, or letters "
            f"that are not UTF-8; rename the folder"
        )
