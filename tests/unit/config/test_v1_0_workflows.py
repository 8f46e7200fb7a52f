"""scripts/inference.py and train.py with the model types of Open-Sora v1.0: tiny random models in published files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from raw_frames import max_level_difference, recording_frames
from training_runs import assert_same_tensors, rows
from v1_0_configs import (
    CLASSES,
    LABELS,
    SIZE,
    WORKFLOWS,
    v1_0_components,
    v1_0_inference,
    v1_0_training,
    write_v1_0_files,
)
from workflow_configs import run_inference, run_training

from opensora.cli.convert import main as convert
from opensora.datasets.media import VideoReader, read_image
from opensora.registry import build, build_stdit_pipeline, check_folders, check_size
from opensora.sample import config_inference


@pytest.fixture(scope="module")
def models(folder) -> Path:
    write_v1_0_files(folder)
    return folder


@pytest.fixture(autouse=True)
def recorded_frames(monkeypatch) -> None:
    monkeypatch.setattr(config_inference, "write_video", recording_frames(config_inference.write_video))


@pytest.mark.parametrize("name", WORKFLOWS)
def test_videos_depend_on_their_prompt_alone(name, models, tmp_path, capsys):
    """Not on the batch; and step caching with a tiny threshold changes nothing."""
    config = v1_0_inference(models, tmp_path / "video.py", name)
    run_inference(config)
    videos = sorted((tmp_path / "samples").glob("*.mp4"))
    assert [path.name for path in videos] == ["sample_0.mp4", "sample_1.mp4", "sample_2.mp4"]
    with VideoReader(videos[0]) as reader:
        assert (len(reader), reader.height, reader.width, reader.fps) == (4, 32, 32, 8)
    assert max_level_difference(videos[0], videos[1]) > 1
    again = tmp_path / "again"
    run_inference(config, "--start-index", 2, "--save-dir", again, "--cache", "first_block:1e-7")
    assert max_level_difference(again / "sample_2.mp4", videos[2]) <= 1
    assert "are missing" not in capsys.readouterr().err


def test_prompts_guide_the_sample(models, tmp_path):
    """With the same noise, another prompt gives another video."""
    run_inference(v1_0_inference(models, tmp_path / "a.py", "dit_classes", prompt=["1"]))
    other = tmp_path / "other"
    run_inference(v1_0_inference(models, tmp_path / "b.py", "dit_classes", prompt=["2"], save_dir=str(other)))
    assert max_level_difference(tmp_path / "samples/sample_0.mp4", other / "sample_0.mp4") > 1


def test_images_of_classes(models, tmp_path):
    model = {**v1_0_components(models, "dit_classes")["model"], "no_temporal_pos_emb": True}
    run_inference(v1_0_inference(models, tmp_path / "image.py", "dit_classes", num_frames=1, model=model))
    assert read_image(tmp_path / "samples/sample_2.png").shape == (32, 32, 3)


@pytest.mark.parametrize("name", ["stdit", "pixart_ms", "dit", "latte_classes"])
def test_training_resumes_exactly_and_reduces_the_loss(name, models, tmp_path):
    """STDiT starts from the weights of the image model PixArt."""
    model = v1_0_components(models, name)["model"]
    if name == "stdit":
        model["from_pretrained"] = str(models / "pixart.pth")
    config = v1_0_training(models, tmp_path / "train.py", name, max_train_steps=6, ckpt_every=3, model=model)
    run_training(config)
    kind = WORKFLOWS[name].type.replace("/", "-")
    whole, resumed = (tmp_path / f"outputs/{number}-{kind}" for number in ("000", "001"))
    losses = [float(loss) for _, loss in rows(whole, ("step", "loss"))]
    assert np.isfinite(losses).all() and np.mean(losses[-2:]) < 0.9 * np.mean(losses[:2])
    run_training(config, "--load", whole / "checkpoint-3")
    assert rows(resumed) == rows(whole)[3:]
    assert_same_tensors(resumed / "checkpoint-6", whole / "checkpoint-6")
    run_inference(v1_0_inference(models, tmp_path / "video.py", name), "--ckpt-path", whole / "checkpoint-6/model_ema")


@pytest.mark.parametrize("name", ["stdit", "dit_classes"])
def test_lora(name, models, tmp_path):
    run_training(v1_0_training(models, tmp_path / "train.py", name, max_train_steps=2, lora_rank=2))
    (lora,) = (tmp_path / "outputs").glob("*/checkpoint-2/lora")
    config = v1_0_inference(models, tmp_path / "video.py", name, batch_size=3)
    run_inference(config)
    adapted = tmp_path / "adapted"
    run_inference(config, "--save-dir", adapted, "--lora", f"{lora}:100")
    assert max_level_difference(adapted / "sample_0.mp4", tmp_path / "samples/sample_0.mp4") > 1


@pytest.mark.parametrize(
    "name, changes, words",
    [
        ("dit_classes", {"prompt": ["a cat"]}, "'a cat' is not a class: .* a number from 0 to 4"),
        ("dit_classes", {"prompt": [str(CLASSES)]}, "'5' is not a class"),
        (
            "dit_classes",
            {"text_encoder": dict(type="classes", num_classes=7)},
            "model.condition 'label_5' is incompatible .*: it should be 'label_7'",
        ),
        ("dit_classes", {"text_encoder": dict(type="clip")}, "condition 'label_5' .* should be 'text'"),
        ("dit", {"text_encoder": dict(type="t5")}, "'t5' is incompatible with the model DiT-XL/2; choose from clip"),
        ("stdit", {"image_size": (40, 32)}, r"STDiT-XL/2 with num_frames 4 and image_size \(40, 32\): input_size"),
        ("dit", {"image_size": (64, 32)}, "should have as many rows as columns"),
        ("stdit_2x2", {"num_frames": 3}, "is not a multiple of patch_size"),
        ("stdit", {"divide_fps": True, "fps": 24}, "is not conditioned on a frame rate"),
        ("pixart", {"guidance_interval": (0, 0.5)}, "guidance_interval: PixArt-XL/2 does not support it"),
        (
            "stdit",
            {"model": dict(type="STDiT-XL/2", enable_sequence_parallelism=True)},
            "enable_sequence_parallelism True is not supported",
        ),
    ],
)
def test_invalid_configs_are_rejected(name, changes, words, models, tmp_path):
    with pytest.raises(ValueError, match=words):
        run_inference(v1_0_inference(models, tmp_path / "video.py", name, **changes))
    assert not list((tmp_path / "samples").glob("*"))


def test_models_without_conditioning_frames(models, tmp_path):
    with pytest.raises(ValueError, match="needs a model with conditioning frames: STDiT2-XL/2, not PixArt-XL/2"):
        run_inference(v1_0_inference(models, tmp_path / "long.py", "pixart"), long=True)
    with pytest.raises(ValueError, match="mask_ratios .* has no effect on the training of DiT-XL/2"):
        run_training(v1_0_training(models, tmp_path / "train.py", "dit", mask_ratios={"image_head": 1.0}))


def test_labels_of_training_data_are_checked(models, tmp_path):
    config = v1_0_training(models, tmp_path / "train.py", "latte_classes")
    with pytest.raises(ValueError, match="'A square, 0.' is not a class"):
        run_training(config, "--data-path", models / "captions.csv")
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("name", WORKFLOWS)
def test_registered_fields(name, models):
    """The published fields of each type, and the sizes that follow from the other components."""
    components = v1_0_components(models, name)
    components["model"].update(enable_flash_attn=True, enable_layernorm_kernel=True, in_channels=4)
    check_folders(components)
    check_size(components, (4, 32, 32))
    pipeline = build_stdit_pipeline(components, video_size=(4, 32, 32))
    assert pipeline.transformer.config.input_size == (4, 4, 4)
    with pytest.raises(ValueError, match="no field 'space_scal"):
        build({**components["model"], "space_scal": 1})


@pytest.mark.parametrize("name", ["stdit", "pixart", "latte_classes"])
def test_converted_files(name, models, tmp_path):
    """With a config.json, which the published files do not have; position embeddings are not needed."""
    config, workflow = tmp_path / "config.json", WORKFLOWS[name]
    values = {**SIZE, **workflow.fields, "caption_channels": 32, "model_max_length": 24}
    config.write_text(json.dumps({"_class_name": workflow.model.__name__, **values}))
    arguments = ["--src", str(models / f"{name}.pth"), "--config", str(config)]
    convert([*arguments, "--target", str(tmp_path / "model.safetensors"), "--to", "fp32"])
    model = {
        **v1_0_components(models, name)["model"],
        "input_size": (2, 4, 4),
        "caption_channels": 32,
        "model_max_length": 24,
    }
    original, converted = build(model), build({**model, "from_pretrained": str(tmp_path)})
    found = converted.torch_state()
    assert all((found[key] == value).all() for key, value in original.torch_state().items())
    config.write_text(json.dumps({"_class_name": workflow.model.__name__, **values, "depth": 3}))
    with pytest.raises(ValueError, match="depth is 3, but .* has 2 layers"):
        convert([*arguments, "--target", str(tmp_path / "other.safetensors")])


def test_clip_and_classes(models):
    with pytest.raises(ValueError, match="model_max_length 25: CLIP has positions for 1 to 24 tokens"):
        build(dict(type="clip", from_pretrained=str(models / "clip"), model_max_length=25))
    with pytest.raises(ValueError, match="num_classes None should be the number of classes"):
        build(dict(type="classes"))
    config = dict(type="DiT-XL/2", from_pretrained=str(models / "dit_classes.pth"), **SIZE, input_size=(2, 4, 4))
    assert build({**config, **LABELS}).config.classes == CLASSES
    with pytest.raises(ValueError, match=r"dit_classes.pth: .*embedding_table.weight \(6, 48\), expected \(4, 48\)"):
        build({**config, "condition": "label_3"})
