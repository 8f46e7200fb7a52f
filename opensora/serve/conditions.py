"""The given frames of a job: images in its folder, so that it depends on no upload and no other video."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from opensora.datasets.media import VIDEO_SUFFIXES, VideoReader, read_image, save_image
from opensora.errors import UserError
from opensora.serve.errors import invalid
from opensora.serve.requests import FRAMES_NAME
from opensora.utils.files import atomic_write


def prepare_frames(folder: Path, spec: Mapping[str, Any], sources: Sequence[Path]) -> dict[str, Any]:
    """Writes the frames as given_000.png, ... and the list of their paths.

    A clip to continue gives its last frames, half as many as the new video has, which become the first ones.

    Args:
        folder: of the job.
        spec: the resolved request.
        sources: the file of each of its `frames`.

    Returns:
        The fields of `SampleOptions` that say where in the video the frames are.

    Raises:
        ApiError: a frame that a video does not have, or a clip without any.
    """
    frames, num_frames = spec["frames"], spec["num_frames"]
    try:
        if len(frames) == 1 and frames[0].get("frame") is None and sources[0].suffix in VIDEO_SUFFIXES:
            images = list(_last_frames(sources[0], max(1, num_frames // 2)))
            condition: dict[str, Any] = {"mask_type": "continuation"}
        else:
            places = [frame.get("frame", 0) % num_frames for frame in frames]
            order = np.argsort(places)
            images = [_image(sources[i], frames[i].get("source_frame")) for i in order]
            condition = {"condition_frames": [places[i] for i in order]}
    except (UserError, OSError) as error:
        raise invalid("frames", str(error).replace(f"{folder.parent.parent}/", "")) from error
    names = [folder / f"given_{number:03d}.png" for number in range(len(images))]
    for path, image in zip(names, images):
        save_image(path, image)
    with atomic_write(folder / FRAMES_NAME) as temporary:
        temporary.write_text(",".join(map(str, names)) + "\n", encoding="utf-8")
    return condition


def _image(path: Path, source_frame: Any) -> np.ndarray:
    """A frame of a video, by default its first, or an image; uint8 (H, W, 3)."""
    if path.suffix not in VIDEO_SUFFIXES:
        return read_image(path)
    with VideoReader(path) as reader:
        number = source_frame or 0
        if not -len(reader) <= number < len(reader):
            raise UserError(f"source_frame {number}: the video has {len(reader)} frames")
        return reader.read([number % len(reader)])[0]


def _last_frames(path: Path, count: int) -> np.ndarray:
    """uint8 (up to `count`, H, W, 3)."""
    with VideoReader(path) as reader:
        return reader.read(range(max(0, len(reader) - count), len(reader)))
