"""Requests become options of sample.py and a command line; settings of models are data."""

from __future__ import annotations

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from opensora.errors import UserError
from opensora.sample.options import SampleOptions, parse_options
from opensora.serve.catalog import DEMO, read_catalog, unchecked_catalog
from opensora.serve.errors import ApiError
from opensora.serve.options import ServeOptions
from opensora.serve.requests import VideoRequest, command_line, may_name_file, resolve, sample_fields


@pytest.fixture
def catalog(tmp_path):
    folder = tmp_path / "loras"
    folder.mkdir()
    (folder / "bright colors.safetensors").write_bytes(b"")
    (folder / "notes.txt").write_text("no LoRA")
    (folder / "outside.safetensors").symlink_to(tmp_path / "secret.safetensors")
    (tmp_path / "secret.safetensors").write_bytes(b"")
    return unchecked_catalog(ServeOptions(lora_dir=str(folder)), {"memory": 8 * 10**9})


def spec_of(catalog, **fields) -> dict:
    return resolve(VideoRequest(**{"prompt": "a red circle", **fields}), catalog, ServeOptions())


def test_the_command_has_the_options_of_the_worker(catalog, tmp_path, monkeypatch):
    spec = spec_of(
        catalog,
        prompt="two words",
        negative_prompt="-dark",
        size="96x64",
        num_frames=5,
        steps=7,
        guidance_scale=2.5,
        sampler="DDIM",
        cache="easy:0.3",
        seed=9,
        loras=[{"name": "bright colors", "scale": -0.5}],
        frames=[{"file": "file_" + "0" * 32, "frame": -1}],
    )
    spec["condition"] = {"condition_frames": [4]}
    fields = json.loads(json.dumps(sample_fields(spec, tmp_path)))  # as a worker gets them
    words = shlex.split(command_line(fields, ["--device", "CPU"]))
    monkeypatch.setattr("opensora.checkpoint.lora.files.find_lora", lambda path: path)
    options, args = parse_options(words[2:])
    assert args.seed == 9 and args.device == "CPU" and str(options.lora[0]).endswith("bright colors.safetensors:-0.5")
    wanted = SampleOptions(**{**fields, "lora": options.lora, "save_img_path": SampleOptions.save_img_path})
    shown = {**options.as_metadata(), "prediction_type": "v_prediction"}
    assert shown == {**wanted.as_metadata(), "version": "v1_3"}


def test_loras_are_names_of_the_folder(catalog):
    assert list(catalog.loras()) == ["bright colors"]
    for name in ("outside", "../secret", "notes", "/etc/passwd", "bright colors.safetensors"):
        with pytest.raises(ApiError, match="there is no LoRA"):
            spec_of(catalog, loras=[{"name": name}])


def test_jobs_keep_the_weights_they_were_asked_with(catalog):
    spec = spec_of(catalog)
    other = replace(catalog.models["text-to-video"], options={"model_path": "elsewhere"})
    assert other.options != spec["options"]
    assert sample_fields(spec, Path("job"))["model_path"] == str(DEMO / "transformer")


@pytest.mark.parametrize(
    "prompt, expected",
    [
        ("a red circle", False),
        ("circle", False),
        ("a circle and/or a star", False),
        ("prompts.txt", True),
        ("a list of prompts.csv", True),
        ("a/b", True),
        ("two\nlines", True),
        ("x.pdf", True),
    ],
)
def test_prompts_that_look_like_files(prompt, expected):
    assert may_name_file(prompt) == expected


@pytest.mark.parametrize(
    "frames, message",
    [
        ([{"file": "file_" + "0" * 32, "video": "video_" + "0" * 32}], "either a file or a video"),
        ([{"file": "file_" + "0" * 32, "frame": 0}, {"file": "file_" + "0" * 32, "frame": -17}], "the same place"),
        ([{"file": "file_" + "0" * 32}, {"file": "file_" + "0" * 32, "frame": 1}], "its place in the new video"),
        ([{"file": "file_" + "0" * 32, "frame": 17}], "from 0 to 16"),
    ],
)
def test_places_of_given_frames(catalog, frames, message):
    with pytest.raises(ApiError, match=message):
        spec_of(catalog, frames=frames)


def test_models_and_frames_go_together(catalog):
    frames = [{"file": "file_" + "0" * 32, "frame": 0}]
    assert spec_of(catalog, frames=frames)["model"] == "image-to-video"
    for fields in ({"model": "image-to-video"}, {"model": "text-to-video", "frames": frames}):
        with pytest.raises(ApiError, match="frames"):
            spec_of(catalog, **fields)
    with pytest.raises(ApiError, match="an image has no further frames"):
        spec_of(catalog, frames=frames, num_frames=1)


def test_settings_are_read_from_the_folder_of_the_weights(tmp_path):
    shutil.copytree(DEMO, tmp_path / "weights")
    paths = dict(zip(("model_path", "ae_path", "text_encoder_name_1"), ("transformer", "vae", "text_encoder")))
    options = ServeOptions(**{name: str(tmp_path / "weights" / folder) for name, folder in paths.items()})
    settings = tmp_path / "weights/studio.json"
    found = json.loads(settings.read_text())
    settings.write_text(json.dumps({**found, "sizes": ["96x96"], "defaults": {**found["defaults"], "steps": 20}}))
    (model,) = read_catalog(options, {}).models.values()
    assert model.sizes == ["96x96"] and model.defaults["steps"] == 20 and "DDIM" in model.samplers
    for broken, message in (
        ("{", "not JSON"),
        ("[]", "should hold an object"),
        ('{"size": []}', "no field 'size'"),
        ('{"sizes": 5}', "sizes should be a list"),
        ('{"defaults": {"step": 5}}', "no field 'step'"),
    ):
        settings.write_text(broken)
        with pytest.raises(UserError, match=message):
            unchecked_catalog(options, {})
    settings.unlink()
    (model,) = unchecked_catalog(options, {}).models.values()
    assert model.title == "Open-Sora-Plan v1.3" and model.defaults["size"] == "640x352"
