"""Requests for videos: their fields, their limits, and what they become, options of sample.py and a command line."""

from __future__ import annotations

import re
import secrets
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr

from opensora.config.lora import LoRASpec
from opensora.config.options import LARGEST_SEED, flags_of
from opensora.errors import UserError
from opensora.sample.options import SampleOptions
from opensora.sample.prompt_files import JSON, LINES, TABLES, UNSUPPORTED
from opensora.serve.catalog import Catalog, StudioModel
from opensora.serve.errors import ApiError, invalid
from opensora.serve.options import ServeOptions

VIDEO_ID, FILE_ID = re.compile(r"video_[0-9a-f]{32}"), re.compile(r"file_[0-9a-f]{32}")
SIZE = r"^[1-9][0-9]{0,4}x[1-9][0-9]{0,4}$"
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")
LONGEST_PROMPT = 2000  # characters
LARGEST_GUIDANCE, LARGEST_SCALE, LARGEST_FPS, MOST_LORAS = 100.0, 10.0, 120, 8
PROMPT_NAME, FRAMES_NAME = "prompt.json", "frames.txt"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class GivenFrame(_Strict):
    """A conditioning frame, or without `frame` a clip to continue."""

    file: Optional[StrictStr] = Field(None, pattern=f"^{FILE_ID.pattern}$", description="an upload")
    video: Optional[StrictStr] = Field(None, pattern=f"^{VIDEO_ID.pattern}$", description="an earlier result")
    source_frame: Optional[StrictInt] = Field(None, description="frame of the given video, -1 for the last")
    frame: Optional[StrictInt] = Field(None, description="frame of the new video, -1 for the last")


class GivenLoRA(_Strict):
    name: StrictStr = Field(max_length=200)
    scale: float = Field(1.0, ge=-LARGEST_SCALE, le=LARGEST_SCALE)


class VideoRequest(_Strict):
    """The body of POST /v1/videos. Fields that are left out have the defaults of the model."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"prompt": "a red circle moves right on a blue background", "seed": 1}]}
    )

    prompt: StrictStr = Field(min_length=1, max_length=LONGEST_PROMPT)
    negative_prompt: Optional[StrictStr] = Field(None, max_length=LONGEST_PROMPT)
    model: Optional[StrictStr] = Field(None, max_length=100, description="id of a model of GET /v1/service")
    size: Optional[StrictStr] = Field(None, pattern=SIZE, description="WIDTHxHEIGHT in pixels", examples=["64x64"])
    num_frames: Optional[StrictInt] = Field(None, ge=1, description="4n+1; 1 makes an image")
    seconds: Optional[float] = Field(None, gt=0, le=3600, description="instead of num_frames")
    fps: Optional[StrictInt] = Field(None, ge=1, le=LARGEST_FPS)
    steps: Optional[StrictInt] = Field(None, ge=1)
    guidance_scale: Optional[float] = Field(None, ge=0, le=LARGEST_GUIDANCE)
    sampler: Optional[StrictStr] = Field(None, max_length=100)
    cache: Optional[StrictStr] = Field(None, max_length=100, examples=["easy", "first_block:0.5"])
    seed: Optional[StrictInt] = Field(None, ge=0, le=LARGEST_SEED, description="default: random, and recorded")
    loras: list[GivenLoRA] = Field([], max_length=MOST_LORAS)
    priority: StrictInt = Field(0, ge=-10, le=10, description="higher ones are made first")
    remixed_from: Optional[StrictStr] = Field(None, pattern=f"^{VIDEO_ID.pattern}$")
    frames: list[GivenFrame] = Field([], max_length=64)


def new_id(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(16)}"


def resolve(request: VideoRequest, catalog: Catalog, limits: ServeOptions) -> dict[str, Any]:
    """The request with all defaults filled in, as it is stored.

    Raises:
        ApiError: a value that the model or the limits of the service do not allow.
    """
    model, loras = _model(request, catalog), catalog.loras()
    defaults = model.defaults
    fps = request.fps or defaults["fps"]
    spec = {
        "model": model.id,
        "prompt": _text("prompt", request.prompt),
        "negative_prompt": _text("negative_prompt", _first(request.negative_prompt, defaults["negative_prompt"])),
        "size": request.size or defaults["size"],
        "num_frames": _num_frames(request, model, fps),
        "fps": fps,
        "steps": _first(request.steps, defaults["steps"]),
        "guidance_scale": float(_first(request.guidance_scale, defaults["guidance_scale"])),
        "sampler": _first(request.sampler, defaults["sampler"]),
        "cache": request.cache,
        "seed": secrets.randbelow(LARGEST_SEED + 1) if request.seed is None else request.seed,
        "loras": [lora.model_dump() for lora in request.loras],
        "frames": [frame.model_dump(exclude_none=True) for frame in request.frames],
        "remixed_from": request.remixed_from,
    }
    if not spec["prompt"]:
        raise invalid("prompt", "prompt is empty")
    if spec["sampler"] not in model.samplers:
        raise invalid("sampler", f"sampler {spec['sampler']!r} is not one of {', '.join(model.samplers)}")
    _check_limits(spec, limits)
    _check_frames(request, spec["num_frames"])
    for lora in request.loras:
        if lora.name not in loras:
            raise invalid("loras", f"there is no LoRA {lora.name!r}; known: {', '.join(loras) or 'none'}")
    # Weights are recorded, because the service may be started with others.
    spec["lora_files"] = [str(LoRASpec(loras[lora.name], lora.scale)) for lora in request.loras]
    spec["options"] = dict(model.options)
    try:
        SampleOptions(**sample_fields(spec, Path("job")))
    except UserError as error:
        raise _as_api_error(error) from error
    return spec


def sample_fields(spec: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The fields of `SampleOptions` of a stored request, which JSON can hold: LoRAs are texts.

    Args:
        folder: of the job. Prompts that look like file names, and the list of given frames, are files in it.
    """
    width, _, height = spec["size"].partition("x")
    return {
        **spec["options"],
        "text_prompt": [str(folder / PROMPT_NAME) if may_name_file(spec["prompt"]) else spec["prompt"]],
        "negative_prompt": spec["negative_prompt"],
        "save_img_path": str(folder),
        "num_frames": spec["num_frames"],
        "width": int(width),
        "height": int(height),
        "fps": spec["fps"],
        "sample_method": spec["sampler"],
        "num_sampling_steps": spec["steps"],
        "guidance_scale": spec["guidance_scale"],
        "cache": spec["cache"],
        "seed": spec["seed"],
        "lora": spec["lora_files"],
        **({"conditional_pixel_values_path": str(folder / FRAMES_NAME)} if spec["frames"] else {}),
        **spec.get("condition", {}),
    }


def command_line(fields: Mapping[str, Any], device: Sequence[str]) -> str:
    """The command that makes the same video, in the folder ./sample_videos.

    Args:
        fields: of `SampleOptions`.
        device: flags of the device.
    """
    words = ["opensora", "sample"]
    for flag in flags_of(SampleOptions):
        value = fields.get(flag.name, flag.default)
        if (
            flag.name == "save_img_path"
            or value is None
            or value == flag.default
            or (value == [] == list(flag.default))
        ):
            continue
        if flag.is_switch:
            words.append(f"--{flag.name}")
            continue
        values = [str(item) for item in value] if isinstance(value, (list, tuple)) else [f"{value}"]
        if len(values) == 1 and values[0].startswith("-"):
            words.append(f"--{flag.name}={values[0]}")
        else:
            words += [f"--{flag.name}", *values]
    return shlex.join([*words, "--seed", str(fields["seed"]), *device])


def may_name_file(prompt: str) -> bool:
    """Whether sample.py could take a prompt for the name of a file, judged by the text alone."""
    ends_like_file = Path(prompt).suffix.lower() in (*LINES, *TABLES, *JSON, *UNSUPPORTED)
    return ends_like_file or "\n" in prompt or (not any(map(str.isspace, prompt)) and "/" in prompt)


def _first(*values: Any) -> Any:
    return next(value for value in values if value is not None)


def _model(request: VideoRequest, catalog: Catalog) -> StudioModel:
    if request.model is None:
        model = catalog.default(with_frames=bool(request.frames))
        if model is None:
            kind = "takes given frames" if request.frames else "makes videos from text alone"
            raise invalid("frames", f"no model of this service {kind}; it offers {', '.join(catalog.models)}")
        return model
    model = catalog.models.get(request.model)
    if model is None:
        raise invalid("model", f"there is no model {request.model!r}; choose from {', '.join(catalog.models)}")
    if model.takes_frames != bool(request.frames):
        raise invalid("frames", f"the model {model.id} {'needs' if model.takes_frames else 'takes no'} frames")
    return model


def _num_frames(request: VideoRequest, model: StudioModel, fps: int) -> int:
    if request.num_frames is not None and request.seconds is not None:
        raise invalid("seconds", "give num_frames or seconds, not both")
    if request.seconds is not None:
        return max(0, round((request.seconds * fps - 1) / 4)) * 4 + 1
    return _first(request.num_frames, model.defaults["num_frames"])


def _text(name: str, text: str) -> str:
    text = text.replace("\r\n", "\n").strip()
    found = CONTROL.search(text)
    if found:
        raise invalid(name, f"{name} has the character {ascii(found[0])}, which is not text; remove it")
    return text


def _check_limits(spec: Mapping[str, Any], limits: ServeOptions) -> None:
    width, height = map(int, spec["size"].split("x"))
    for name, value, most, unit in (
        ("num_frames", spec["num_frames"], limits.max_frames, "frames"),
        ("size", width * height, limits.max_pixels, "pixels"),
        ("steps", spec["steps"], limits.max_steps, "steps"),
    ):
        if value > most:
            raise invalid(name, f"{name}: {value} {unit} are more than the {most} that this service allows")


def _check_frames(request: VideoRequest, num_frames: int) -> None:
    """Checks what a request says about given frames, not yet the uploads and videos that it names."""
    for frame in request.frames:
        if (frame.file is None) == (frame.video is None):
            raise invalid("frames", "each of frames has either a file or a video")
    if request.frames and num_frames == 1:
        raise invalid("frames", "an image has no further frames; leave out frames, or raise num_frames")
    if len(request.frames) > 1 and any(frame.frame is None for frame in request.frames):
        raise invalid("frames", 'give each of several frames its place in the new video, as in "frame": -1')
    places = [frame.frame for frame in request.frames if frame.frame is not None]
    if any(not -num_frames <= place < num_frames for place in places):
        raise invalid("frames", f"frame should be from 0 to {num_frames - 1}, or negative to count from the end")
    if len({place % num_frames for place in places}) < len(places):
        raise invalid("frames", "two of frames have the same place in the new video")


def _as_api_error(error: UserError) -> ApiError:
    """The field that a message of `SampleOptions` is about, by the names of both."""
    names = {
        "num_frames": "num_frames",
        "height": "size",
        "width": "size",
        "--cache": "cache",
        "num_sampling_steps": "steps",
    }
    param = next((field for name, field in names.items() if name in str(error)), None)
    return invalid(param, str(error))
