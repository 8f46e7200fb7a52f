"""opensora inspect: every kind of weights, with its config.json and without."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from golden_cases import case
from golden_models import HPCAITECH_V1_CASES, build
from lora_files import random_lora
from processes import ROOT
from stored_models import KINDS, write_model
from tiny_models import make_release

from opensora.checkpoint.formats.safetensors import write_safetensors
from opensora.checkpoint.inspect import CLASSES, CONFIG_FILES, config_file, inspect
from opensora.checkpoint.lazy_tensor import ArrayTensor
from opensora.checkpoint.lora.files import write_lora
from opensora.checkpoint.lora.settings import LoRASettings
from opensora.cli.inspect import main
from opensora.models import CausalVAEModel
from opensora.models.pretrained import PretrainedModel

ALIASES = {"VideoAutoencoderKL": "AutoencoderKL"}


def published(model: type[PretrainedModel]) -> str:
    return ALIASES.get(model.__name__, model.__name__)


@pytest.mark.parametrize("kind", KINDS)
def test_models_are_recognized(kind, tmp_path):
    """With their config.json, and from their tensors alone."""
    path = write_model(tmp_path / "model", kind, "BF16")
    folder = path if path.is_dir() else path.parent
    (described,) = inspect(folder)
    assert described.name == published(KINDS[kind].model)
    assert "BF16" in described.lines["stored as"] and str(folder) in described.lines["used by"]
    (folder / "config.json").unlink(missing_ok=True)
    (alone,) = inspect(path)
    assert alone.name == described.name
    assert alone.lines["parameters"] == described.lines["parameters"]
    assert "missing" in alone.lines["config.json"]


def test_causal_vae_is_recognized(tmp_path):
    CausalVAEModel(hidden_size=32, num_res_blocks=1).save_pretrained(tmp_path)
    (described,) = inspect(tmp_path)
    (tmp_path / "config.json").unlink()
    (alone,) = inspect(tmp_path)
    assert described.name == alone.name == "CausalVAEModel"
    assert "4 latent channels (LatteT2V, OpenSoraT2V)" in described.lines["goes with"]


def test_folder_of_models_is_searched(tmp_path, capsys):
    release = make_release(tmp_path / "release")
    (tmp_path / "release/broken").mkdir()
    (tmp_path / "release/broken/model.safetensors").write_bytes(b"\x00" * 20)
    found = inspect(release)
    names = {(each.path.parent if each.name else each.path).name: each.name for each in found}
    assert names == {"broken": None, "text": "MT5EncoderModel", "transformer": "OpenSoraT2V_v1_3", "vae": "WFVAEModel"}
    main([str(release / "vae"), str(release / "text")])
    shown = capsys.readouterr().out
    assert "opensora sample --ae_path" in shown and "opensora sample --text_encoder_name_1" in shown


def test_lora_and_checkpoint(tmp_path):
    """The state of the optimizer is not taken for a model."""
    checkpoint = tmp_path / "checkpoint-5"
    write_lora(checkpoint / "lora/pytorch_lora_weights.safetensors", random_lora(3), LoRASettings(3, 6.0))
    write_safetensors(checkpoint / "optimizer.safetensors", {"exp_avg.x": ArrayTensor(np.zeros(3, np.float32))})
    for path in (checkpoint, tmp_path, checkpoint / "lora"):
        (described,) = inspect(path)
        assert described.name == "LoRA" and described.lines["settings"] == "rank 3, alpha 6"
        assert described.lines["is"] == "LoRA of 5 layers"


def test_what_is_no_model(tmp_path):
    write_safetensors(tmp_path / "other.safetensors", {"x": ArrayTensor(np.zeros(3, np.float32))})
    (described,) = inspect(tmp_path / "other.safetensors")
    assert described.name is None and "unknown" in described.text()
    (tmp_path / "text.bin").write_text("hello")
    with pytest.raises(ValueError, match="text.bin"):
        inspect(tmp_path / "text.bin")
    (tmp_path / "empty").mkdir()
    for path, words in ((tmp_path / "empty", "no weights in this folder"), (Path("nowhere"), "no such file")):
        with pytest.raises(FileNotFoundError, match=words):
            inspect(path)


@pytest.mark.parametrize(
    "name", ["stdit1_xmask", "pixart_video", "pixart_ms", "dit_xl_2x2", "latte_hpc_text", "clip_text_tiny"]
)
def test_models_of_open_sora_v1_0_are_recognized(name, tmp_path):
    """Their files have no config.json."""
    build(name, HPCAITECH_V1_CASES).save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    (described,) = inspect(tmp_path)
    model = case(name, HPCAITECH_V1_CASES)["model"]
    assert described.name == ("DiT" if model == "Latte" else model)
    if model == "CLIPTextModel":
        assert "text_encoder = dict(type='clip', from_pretrained=" in described.lines["used by"]
    else:
        assert "opensora inference configs/" in described.lines["used by"]


@pytest.mark.parametrize(
    "name, shapes, config",
    [
        ("STDiT", {"pos_embed": (1, 256, 8), "pos_embed_temporal": (1, 16, 8)}, "opensora-v1-0/inference/16x256x256"),
        ("STDiT", {"pos_embed": (1, 1024, 8), "pos_embed_temporal": (1, 64, 8)}, "opensora-v1-0/inference/64x512x512"),
        ("PixArt", {"pos_embed": (1, 1024, 8)}, "pixart/inference/1x512x512"),
        ("PixArt", {"pos_embed": (8,)}, "pixart/inference/1x256x256"),
        ("DiT", {CLASSES: (1001, 8)}, "dit/inference/1x256x256-class"),
        ("Latte", {CLASSES: (102, 8), "temp_embed": (1, 16, 8)}, "latte/inference/16x256x256-class"),
    ],
)
def test_config_file_fits_the_weights(name, shapes, config):
    state = {key: ArrayTensor(np.zeros(shape, np.float32)) for key, shape in shapes.items()}
    assert config_file(name, state) == f"configs/{config}.py"


def test_config_files_exist():
    for folder, names in CONFIG_FILES.values():
        assert all((ROOT / f"configs/{folder}/inference/{name}.py").is_file() for name in names)
