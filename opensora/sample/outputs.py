"""Output files: videos or images, grids, latents, and a JSON record of how each result was made."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import opensora
from opensora.config.acceleration import WHOLE_RANGE
from opensora.datasets.media import VideoReader, read_image, save_image, write_video
from opensora.device import Device
from opensora.errors import UserError
from opensora.pipelines.base import VideoPipeline
from opensora.sample.options import SampleOptions
from opensora.utils.files import atomic_write
from opensora.utils.folder_lock import compressed_bytes

GRID_GAP = 1
# Arguments that may change when a run is resumed.
FREE_ARGUMENTS = (
    "text_prompt",
    "conditional_pixel_values_path",
    "save_img_path",
    "num_samples_per_prompt",
    "enable_tiling",
    "memory",
    "save_memory",
    "save_latents",
    "decode_latents",
    "overwrite",
    "sp_size",
    "sp",
    "cfg_size",
)


@dataclass(frozen=True)
class Sample:
    """The `number`-th sample of the `index`-th prompt, with the paths of its conditioning files."""

    index: int
    number: int
    prompt: str
    conditioning_paths: tuple[str, ...]
    path: Path

    @property
    def latents_path(self) -> Path:
        return self.path.with_suffix(".npy")

    @property
    def metadata_path(self) -> Path:
        return self.path.with_suffix(".json")


def plan_samples(options: SampleOptions, inputs: Sequence[tuple[str, tuple[str, ...]]]) -> list[Sample]:
    """All results of a run in order, in files `METHOD_INDEX_gsSCALE_sSTEPS[_iNUMBER].mp4`."""
    return [
        Sample(index, number, prompt, conditioning_paths, options.result_path(index, number))
        for index, (prompt, conditioning_paths) in enumerate(inputs)
        for number in range(options.num_samples_per_prompt)
    ]


def bytes_per_sample(options: SampleOptions) -> float:
    """Estimated file size of one result."""
    size = options.height * options.width if options.crop_for_hw or not options.is_inpaint else options.max_hxw
    return compressed_bytes(options.num_frames, size)


def write_frames(path: Path, chunks: Iterable[np.ndarray], fps: int) -> None:
    """Writes uint8 chunks (1, t, H, W, 3) as a video, or a single frame as an image."""
    if path.suffix in (".jpg", ".png"):
        (chunk,) = chunks
        save_image(path, chunk[0, 0])
        return
    with write_video(path, fps) as write:
        for chunk in chunks:
            write(chunk[0])


def write_metadata(
    sample: Sample,
    options: SampleOptions,
    device: Device,
    seed: Sequence[int],
    prompt_used: str,
    weights: Mapping[str, str],
    pipeline: VideoPipeline,
) -> None:
    """Writes everything needed to reproduce the sample.

    Args:
        prompt_used: the refined prompt, if there was a refiner.
        weights: the formats that the models' weights were held in.
        pipeline: which has just denoised the sample.
    """
    import mindspore

    record = {
        "prompt": sample.prompt,
        "prompt_used": prompt_used,
        "condition": list(sample.conditioning_paths),
        "prompt_index": sample.index,
        "sample_number": sample.number,
        "noise_seed": list(seed),
        "model_calls": pipeline.model_calls,
        "arguments": options.as_metadata(),
        "device": {
            "target": device.target,
            "mode": device.mode,
            "compiled": pipeline.compiled,
            **device.precisions,
            "weights": dict(weights),
        },
        "versions": {
            "opensora": opensora.__version__,
            "mindspore": mindspore.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }
    with atomic_write(sample.metadata_path) as temporary:
        temporary.write_text(json.dumps(record, indent=2, ensure_ascii=False), encoding="utf-8")


def check_same_run(sample: Sample, options: SampleOptions) -> None:
    """Raises UserError if the sample's file exists and was made from other inputs or arguments, or has no valid record.

    A record without a result is ignored.
    """
    if not sample.metadata_path.exists() or not (sample.path.exists() or sample.latents_path.exists()):
        return
    recorded = _read_record(sample)
    wanted = {**options.as_metadata(), "prompt": sample.prompt, "condition": list(sample.conditioning_paths)}
    for name, value in wanted.items():
        if name not in FREE_ARGUMENTS and name not in recorded:
            raise _no_record(sample, f"{name} is missing")
        if name not in FREE_ARGUMENTS and recorded[name] != value:
            raise UserError(
                f"{sample.path} was made with {name} {recorded[name]!r}, not {value!r}: "
                f"choose another --save_img_path, or --overwrite"
            )


def read_latents(path: Path) -> np.ndarray:
    """The latents of a run with --save_latents. Raises UserError for a damaged file."""
    try:
        return np.load(path)
    except Exception as error:  # numpy parses the header as Python, which fails in many ways
        raise UserError(f"{path}: cannot read these latents ({error!s:.300}); make them again") from error


def _read_record(sample: Sample) -> dict:
    """The arguments and inputs recorded in the JSON file of a result."""
    try:
        record = json.loads(sample.metadata_path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise _no_record(sample, "not JSON in UTF-8") from error
    if not isinstance(record, dict) or not isinstance(record.get("arguments"), dict):
        raise _no_record(sample, "no object with arguments")
    inputs = {name: record[name] for name in ("prompt", "condition") if name in record}
    added_later: dict[str, Any] = {
        "condition": [],
        "weights": [],
        "text_encoder_device": None,
        "lora": [],
        "timesteps": None,
        "condition_frames": [],
        "cache": None,
        "guidance_interval": list(WHOLE_RANGE),
    }
    return {**added_later, **record["arguments"], **inputs}


def _no_record(sample: Sample, reason: str) -> UserError:
    return UserError(
        f"{sample.metadata_path} is not a valid record of {sample.path.name} ({reason}): remove both to "
        f"generate it again, choose another --save_img_path, or --overwrite"
    )


def write_latents(path: Path, latents: np.ndarray) -> None:
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.save(file, latents)


def write_grids(options: SampleOptions, samples: Sequence[Sample]) -> None:
    """Writes a grid of each prompt's samples, if several, and a grid of all samples, if they have the same size."""
    if options.num_samples_per_prompt > 1:
        for index in sorted({sample.index for sample in samples}):
            _write_grid(
                [sample.path for sample in samples if sample.index == index], options.result_path(index), options.fps
            )
    if len(samples) > 1 and (options.crop_for_hw or not options.is_inpaint):
        _write_grid([sample.path for sample in samples], options.result_path(None), options.fps)


def _write_grid(paths: Sequence[Path], target: Path, fps: int) -> None:
    """Tiles files of equal size, frame by frame."""
    if target.suffix in (".jpg", ".png"):
        save_image(target, _tile([read_image(path) for path in paths]))
        return
    with ExitStack() as stack:
        readers = [stack.enter_context(VideoReader(path)) for path in paths]
        write = stack.enter_context(write_video(target, fps))
        for chunks in zip(*(reader.chunks(range(len(reader))) for reader in readers)):
            write(np.stack([_tile(frames) for frames in zip(*chunks)]))


def _tile(frames: Sequence[np.ndarray]) -> np.ndarray:
    """Tiles frames (H, W, 3) in a nearly square grid with thin black lines."""
    rows = math.ceil(math.sqrt(len(frames)))
    columns = math.ceil(len(frames) / rows)
    height, width = (size + GRID_GAP for size in frames[0].shape[:2])
    grid = np.zeros((rows * height + GRID_GAP, columns * width + GRID_GAP, 3), np.uint8)
    for i, frame in enumerate(frames):
        top, left = i // columns * height + GRID_GAP, i % columns * width + GRID_GAP
        grid[top : top + frame.shape[0], left : left + frame.shape[1]] = frame
    return grid
