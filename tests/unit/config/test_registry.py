"""Components built from configs, and the configs in configs/."""

from __future__ import annotations

import json
import re

import mindspore as ms
import pytest
from processes import ROOT
from workflow_configs import STDIT

from opensora.cli.config_files import parse_configs
from opensora.config.families import PLAN, check_family
from opensora.datasets.bucketed.buckets import Buckets
from opensora.registry import REGISTRY, build, check_folders
from opensora.sample.inference_options import InferenceOptions
from opensora.train import config_run


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.py")), ids=lambda path: "/".join(path.parts[-3:]))
def test_shipped_configs_are_valid(path):
    """They can be read, and their types and fields exist."""
    training = "train" in path.parts
    config = parse_configs(training, [str(path)])
    size = re.match(r"(\d+)x(\d+)x(\d+)", path.stem)
    for name in ("model", "vae", "text_encoder", "scheduler", "dataset"):
        if name in config and config[name].type in REGISTRY:
            assert set(config[name]) - {"type", "snr_gamma"} <= set(REGISTRY[config[name].type].fields), name
    if not training:
        check_family(config, training)
        options = InferenceOptions.from_config(config)
        if size:
            assert (options.num_frames, *options.image_size) == tuple(map(int, size.groups()))
        else:
            assert options.num_frames == (1 if path.stem == "image" else config.num_frames)
        return
    check_family(config, training)
    if size:
        config_run.stdit_options(config, 2)
        assert (config.dataset.num_frames, *config.dataset.image_size) == tuple(map(int, size.groups()))
    elif config.model.type == PLAN:
        assert (config_run.plan_options(config, 2).data.num_frames == 1) == (path.stem == "image")
    else:
        levels = Buckets(config_run.stdit_options(config, 2).bucket_config).levels
        assert all((level.frames == 1) == (path.stem == "image") for level in levels)


def test_build_creates_components():
    assert build(None) is None
    scheduler = build(dict(type="iddpm", num_sampling_steps=3, cfg_channel=3), "scheduler")
    assert (scheduler.num_steps, scheduler.cfg_channel) == (3, 3)
    model = build(
        dict(type="STDiT2-XL/2", **STDIT),
        caption_channels=32,
        model_max_length=8,
        input_size=(1, 2, 3),
        dtype=ms.float32,
    )
    assert model.config.caption_channels == 32 and model.config.depth == 2
    for config, kind, words in (
        (dict(type="iddmp"), None, "did you mean iddpm.*choose from STDiT2-XL/2"),
        ({}, None, "unknown component type None"),
        (dict(type="t5"), "vae", "unknown vae type 't5'"),
        (dict(type="t5", from_pretraned="x"), None, "no field 'from_pretraned' .did you mean from_pretrained"),
        (dict(type="iddpm", depth=3), None, "iddpm has no field 'depth'; its fields are num_sampling_steps"),
        (dict(type="WFVAEModel_D8_4x8x8"), None, "from_pretrained is missing"),
    ):
        with pytest.raises(ValueError, match=words):
            build(config, kind)
    with pytest.raises(FileNotFoundError, match="DeepFloyd/t5-v1_1-xxl: no such file .* huggingface-cli download"):
        build(dict(type="t5", from_pretrained="DeepFloyd/t5-v1_1-xxl", cache_dir="nowhere"))


def test_hub_cache_is_found(folder, tmp_path):
    snapshot = tmp_path / "models--stabilityai--kl/snapshots/0123"
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(folder / "kl")
    (tmp_path / "models--stabilityai--kl/refs").mkdir()
    (tmp_path / "models--stabilityai--kl/refs/main").write_text("0123")
    vae = build(
        dict(type="VideoAutoencoderKL", from_pretrained="stabilityai/kl", cache_dir=str(tmp_path), micro_batch_size=2)
    )
    assert vae.config.micro_batch_size == 2


def test_folders_of_other_models_are_rejected(tmp_path):
    """Before any component of a config is loaded."""
    for name, class_name in (("vae", "CausalVAEModel"), ("model", "LatteT2V")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"_class_name": class_name}))
    config = {
        "model": {"type": "OpenSoraT2V_v1_3-2B/122"},
        "text_encoder": {"type": "mt5"},
        "vae": {"type": "WFVAEModel_D8_4x8x8", "from_pretrained": str(tmp_path / "vae")},
    }
    with pytest.raises(
        ValueError, match="vae: holds a CausalVAEModel .*; from_pretrained of WFVAEModel_D8_4x8x8 needs a "
    ):
        check_folders(config)
    config["model"]["from_pretrained"] = str(tmp_path / "model")
    with pytest.raises(
        ValueError, match="model: holds a LatteT2V .*; from_pretrained of OpenSoraT2V_v1_3-2B/122 needs an"
    ):
        check_folders(config)
