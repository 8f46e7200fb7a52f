"""The models that a service offers: their weights, settings, sizes and example prompts.

The settings of a folder of weights are data: its file `studio.json`, else the defaults of the published weights.

    {"title": "...", "options": {fields of SampleOptions}, "defaults": {"size": "64x64", "num_frames": 17, "fps": 8,
     "steps": 50, "guidance_scale": 4, "sampler": "EulerAncestralDiscrete"}, "sizes": ["64x64"], "frames": [1, 5, 17],
     "example_prompts": {"text-to-video": ["..."], "image-to-video": ["..."]}}
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Optional

from opensora.config.families import SAMPLERS
from opensora.config.options import check_known
from opensora.errors import UserError
from opensora.sample.child_process import converse
from opensora.sample.options import SampleOptions
from opensora.serve.options import WEIGHT_FLAGS, ServeOptions

SETTINGS_NAME = "studio.json"
DEMO = Path(__file__).resolve().parents[2] / "examples" / "demo_model"
DEMO_FOLDERS = dict(zip(WEIGHT_FLAGS, ("transformer", "inpaint", "vae", "text_encoder")))
TEXT, IMAGE = TASKS = ("text-to-video", "image-to-video")
LORA_SUFFIXES = (".safetensors", ".pt", ".ckpt", ".bin")

_PUBLISHED: dict[str, Any] = {
    "title": "Open-Sora-Plan v1.3",
    "options": {"rescale_betas_zero_snr": True},
    "defaults": {
        "size": "640x352",
        "num_frames": 29,
        "fps": SampleOptions.fps,
        "steps": SampleOptions.num_sampling_steps,
        "guidance_scale": SampleOptions.guidance_scale,
        "sampler": SampleOptions.sample_method,
    },
    "sizes": ["640x352", "352x640", "480x480", "640x640"],
    "frames": [1, 29, 61, 93],
    "example_prompts": {
        TEXT: ["A paper boat drifts down a rain-filled gutter", "Waves roll onto a beach of black sand at dusk"],
        IMAGE: ["The camera moves slowly forward"],
    },
}


@dataclass(frozen=True)
class StudioModel:
    """A transformer that the service offers.

    Attributes:
        id: name in requests.
        options: fields of `SampleOptions` that are the same for every video, with the paths of the weights.
        defaults: size, num_frames, fps, steps, guidance_scale, sampler and negative_prompt of requests without them.
        sizes, frames: offered by the page; requests may name others within the limits.
        samplers: that its noise schedule allows.
    """

    id: str
    task: str
    title: str
    options: Mapping[str, Any]
    defaults: Mapping[str, Any]
    sizes: Sequence[str]
    frames: Sequence[int]
    example_prompts: Sequence[str]
    samplers: Sequence[str] = SAMPLERS

    @property
    def takes_frames(self) -> bool:
        return self.task == IMAGE


@dataclass(frozen=True)
class Catalog:
    """The models by id, and the LoRAs by name."""

    models: Mapping[str, StudioModel]
    lora_dir: Optional[Path]

    def default(self, with_frames: bool) -> Optional[StudioModel]:
        """The model of a request that names none; None if the service has no such model."""
        return next((model for model in self.models.values() if model.takes_frames == with_frames), None)

    def loras(self) -> dict[str, Path]:
        """The files of --lora_dir by the names that requests give. Links that leave the folder are left out."""
        if self.lora_dir is None:
            return {}
        found = sorted(self.lora_dir.iterdir())
        return {
            path.stem: path
            for path in found
            if path.suffix in LORA_SUFFIXES and path.is_file() and path.resolve().parent == self.lora_dir
        }


def read_catalog(options: ServeOptions, memory: Mapping[str, Any]) -> Catalog:
    """The models of a service, checked in another process without reading their weights.

    Args:
        memory: the fields of `MemoryOptions`, which apply to every video.

    Raises:
        UserError, FileNotFoundError: missing weights, weights that do not go together, or invalid settings.
    """
    catalog = unchecked_catalog(options, memory)
    models = list(catalog.models.values())
    answers = converse(
        "opensora.serve.model_process",
        [],
        {"task": "check", "runs": [_example(model) for model in models]},
        len(models),
        "weights' check",
    )
    checked = {
        model.id: replace(model, options={**model.options, **answer["options"]}, samplers=answer["samplers"])
        for model, answer in zip(models, list(answers))
    }
    return replace(catalog, models=checked)


def unchecked_catalog(options: ServeOptions, memory: Mapping[str, Any]) -> Catalog:
    """As `read_catalog`, without a look at the weights."""
    paths = {name: getattr(options, name) for name in WEIGHT_FLAGS}
    if not any(paths.values()):
        if not (DEMO / DEMO_FOLDERS["model_path"]).is_dir():
            raise UserError("the demo model is part of the repository, not of the package; give --model_path")
        paths = {name: str(DEMO / folder) for name, folder in DEMO_FOLDERS.items()}
    settings = _settings([path for path in (paths["model_path"], paths["inpaint_path"]) if path])
    models = {}
    for task, name in zip(TASKS, ("model_path", "inpaint_path")):
        if paths[name]:
            model = _model(task, settings, {**paths, "model_path": paths[name]}, memory)
            models[model.id] = model
    lora_dir = Path(options.lora_dir).resolve() if options.lora_dir else None
    if lora_dir is not None and not lora_dir.is_dir():
        raise FileNotFoundError(f"--lora_dir {options.lora_dir}: no such folder")
    return Catalog(models, lora_dir)


def _settings(folders: Sequence[str]) -> Mapping[str, Any]:
    """The settings in the first of these folders, or of their parents, that has some."""
    for folder in map(Path, folders):
        for path in (folder / SETTINGS_NAME, folder.parent / SETTINGS_NAME):
            if path.is_file():
                return _read_settings(path)
    return _PUBLISHED


def _read_settings(path: Path) -> Mapping[str, Any]:
    """Raises UserError for a file that does not have the fields of `_PUBLISHED`, in the same types."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON in UTF-8 ({error!s:.200})") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: should hold an object with {', '.join(_PUBLISHED)}")
    check_known(found, _PUBLISHED, str(path))
    for name, published in _PUBLISHED.items():
        if name in found and not isinstance(found[name], type(published)):
            raise UserError(f"{path}: {name} should be a {type(published).__name__}, as in {json.dumps(published)}")
    check_known(found.get("defaults", {}), _PUBLISHED["defaults"], f"{path}: defaults")
    check_known(found.get("example_prompts", {}), TASKS, f"{path}: example_prompts")
    merged = {**_PUBLISHED, **found}
    return {**merged, "defaults": {**_PUBLISHED["defaults"], **merged["defaults"]}}


def _model(
    task: str, settings: Mapping[str, Any], paths: Mapping[str, Optional[str]], memory: Mapping[str, Any]
) -> StudioModel:
    weights = {name: str(Path(path).absolute()) for name, path in paths.items() if path and name != "inpaint_path"}
    options = {
        **settings["options"],
        **memory,
        **weights,
        "model_type": "i2v" if task == IMAGE else "t2v",
        **({"crop_for_hw": True} if task == IMAGE else {}),
    }
    return StudioModel(
        id=task,
        task=task,
        title=settings["title"],
        options=options,
        defaults={
            **settings["defaults"],
            "negative_prompt": options.pop("negative_prompt", SampleOptions.negative_prompt),
        },
        sizes=settings["sizes"],
        frames=settings["frames"],
        example_prompts=settings["example_prompts"].get(task, []),
    )


def _example(model: StudioModel) -> dict[str, Any]:
    """The fields of `SampleOptions` of a video with the defaults, to check them."""
    width, _, height = model.defaults["size"].partition("x")
    condition = {"conditional_pixel_values_path": "image.png"} if model.takes_frames else {}
    if model.defaults["sampler"] not in SAMPLERS:
        raise UserError(f"{SETTINGS_NAME}: sampler {model.defaults['sampler']!r} is not one of {', '.join(SAMPLERS)}")
    try:
        return {
            **model.options,
            **condition,
            "text_prompt": ["a prompt"],
            "num_frames": model.defaults["num_frames"],
            "width": int(width),
            "height": int(height),
        }
    except ValueError as error:
        raise UserError(f"{SETTINGS_NAME}: size {model.defaults['size']!r} should be WIDTHxHEIGHT") from error
