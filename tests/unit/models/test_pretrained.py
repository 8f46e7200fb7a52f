"""Loading and saving of models and their configurations."""

from __future__ import annotations

import json
import re

import mindspore as ms
import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny_models import TEXT, VAE, make_published_release, save_vae_checkpoint, write_shards
from torch_files import SAVERS, as_tensors, same

from opensora.checkpoint.files import open_state, read_config
from opensora.checkpoint.formats.safetensors import write_safetensors
from opensora.checkpoint.lazy_tensor import ArrayTensor
from opensora.models import MT5EncoderModel, OpenSoraInpaint_v1_3, OpenSoraT2V_v1_3, WFVAEModel


@pytest.fixture(scope="module")
def vae():
    return WFVAEModel(**VAE)


def write_config(folder, config=None, **changes):
    folder.mkdir(exist_ok=True)
    config = config or {"_class_name": "WFVAEModel", **VAE}
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def test_state_has_published_names(vae):
    state = vae.torch_state()
    assert state["encoder.wavelet_transform_in.gh_v_conv.conv.weight"].shape == (1, 1, 2, 2, 2)
    assert "decoder.up2.1.conv.conv.weight" in state and "encoder.down1.1.norm1.norm.weight" in state
    assert (state["decoder.inverse_wavelet_transform_l1.ad"] == np.array([[[[1, 1], [-1, -1]]]]) / 2).all()


def test_save_pretrained_round_trip(vae, tmp_path):
    vae.save_pretrained(tmp_path)
    assert same(load_file(tmp_path / "diffusion_pytorch_model.safetensors"), vae.torch_state())
    loaded = WFVAEModel.from_pretrained(tmp_path)
    assert same(loaded.torch_state(), vae.torch_state()) and loaded.config == vae.config


@pytest.mark.parametrize(
    "container",
    [
        lambda state: state,
        lambda state: {"state_dict": state},
        lambda state: {"state_dict": {"gen_model": state}},
        lambda state: {
            "epoch": 1,
            "ema_state_dict": {f"module.{k}": v for k, v in state.items()},
            "state_dict": {"gen_model": {}},
        },
    ],
    ids=["plain", "state_dict", "gen_model", "ema"],
)
@pytest.mark.parametrize("format", list(SAVERS))
def test_torch_checkpoints_load(vae, tmp_path, container, format):
    write_config(tmp_path)
    SAVERS[format](tmp_path / "merged.ckpt", container(as_tensors(vae.torch_state())))
    assert same(WFVAEModel.from_pretrained(tmp_path).torch_state(), vae.torch_state())
    config = read_config(tmp_path)
    assert same(WFVAEModel.from_pretrained(tmp_path / "merged.ckpt", config=config).torch_state(), vae.torch_state())


def test_ema_weights_are_preferred(vae, tmp_path):
    state = vae.torch_state()
    save_vae_checkpoint(tmp_path, state)
    plain = {key: value if "wavelet" in key else value + 1 for key, value in state.items()}
    assert same(WFVAEModel.from_pretrained(tmp_path).torch_state(), state)
    assert same(WFVAEModel.from_pretrained(tmp_path, use_ema=False).torch_state(), plain)


def test_shards_and_mindspore_checkpoints_load(vae, tmp_path):
    write_config(tmp_path / "shards")
    state = vae.torch_state()
    write_shards(tmp_path / "shards", state, 2)
    assert same(WFVAEModel.from_pretrained(tmp_path / "shards").torch_state(), state)
    ms.save_checkpoint(vae, str(tmp_path / "vae.ckpt"))
    assert same(WFVAEModel.from_pretrained(tmp_path / "vae.ckpt", config=VAE).torch_state(), state)
    (tmp_path / "shards/diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="model-00002-of-00002.safetensors: missing"):
        WFVAEModel.from_pretrained(tmp_path / "shards")


def test_t5_decoder_is_ignored_and_tied_weights_are_shared():
    model = MT5EncoderModel(**TEXT, is_encoder_decoder=True)
    state = model.torch_state()
    assert (state["shared.weight"] == state["encoder.embed_tokens.weight"]).all()
    doubled = {name: value * 2 for name, value in state.items() if name != "encoder.embed_tokens.weight"}
    missing, unexpected = model.load_torch_state({**doubled, "decoder.x": np.ones(3), "lm_head.weight": np.ones(3)})
    assert not missing and not unexpected
    assert (model.torch_state()["encoder.embed_tokens.weight"] == 2 * state["shared.weight"]).all()


def test_mismatched_state_changes_no_parameter(vae):
    state = {name: value + 1 for name, value in vae.torch_state().items() if "wavelet" not in name}
    before = vae.torch_state()
    first = next(iter(state))
    with pytest.raises(ValueError, match="1 missing .*; 1 unexpected .bogus"):
        vae.load_torch_state({**{k: v for k, v in state.items() if k != first}, "bogus": np.ones(1)})
    with pytest.raises(ValueError, match="expected"):
        vae.load_torch_state({**state, first: np.ones((1, 2))})
    with pytest.raises(ValueError, match="constant"):
        vae.load_torch_state({**state, "decoder.inverse_wavelet_transform_out.h": np.ones((1, 1, 2, 2, 2))})
    assert same(vae.torch_state(), before)
    assert vae.load_torch_state({"bogus": np.ones(1)}, strict=False)[1] == ["bogus"]


def test_bfloat16_model_keeps_norms_in_float32(vae, tmp_path):
    vae.save_pretrained(tmp_path)
    loaded = WFVAEModel.from_pretrained(tmp_path, dtype=ms.bfloat16)
    kinds = {name: parameter.dtype for name, parameter in loaded.parameters_and_names()}
    assert kinds["encoder.norm_out.norm.weight"] == ms.float32
    assert kinds["encoder.conv_out.conv.weight"] == ms.bfloat16
    for name, value in loaded.torch_state().items():
        assert np.allclose(value, vae.torch_state()[name], rtol=1e-2)


def test_loading_consumes_no_random_numbers(vae, tmp_path):
    """Parameters are not initialized before they are overwritten."""
    vae.save_pretrained(tmp_path)
    ms.set_seed(7)
    expected = ms.ops.standard_normal((3,)).asnumpy()
    ms.set_seed(7)
    WFVAEModel.from_pretrained(tmp_path)
    assert (ms.ops.standard_normal((3,)).asnumpy() == expected).all()


def test_unusable_files_are_named_in_errors(vae, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        WFVAEModel.from_pretrained(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no weights in this folder"):
        WFVAEModel.from_pretrained(tmp_path / "empty")
    vae.save_pretrained(tmp_path / "wrong")
    write_config(tmp_path / "wrong", base_channels=16)
    with pytest.raises(ValueError, match="wrong.*do not fit the configuration"):
        WFVAEModel.from_pretrained(tmp_path / "wrong")
    write_config(tmp_path / "wrong", base_chanels=16)
    with pytest.raises(ValueError, match="wrong/config.json: .*base_chanels.*base_channels"):
        WFVAEModel.from_pretrained(tmp_path / "wrong")
    (tmp_path / "wrong/config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json: not a json file"):
        WFVAEModel.from_pretrained(tmp_path / "wrong")
    (tmp_path / "x.bin").write_bytes(b"what is this")
    with pytest.raises(ValueError, match="neither safetensors"):
        open_state(tmp_path / "x.bin")


def test_published_layout_loads(tmp_path):
    folder = make_published_release(tmp_path)
    assert WFVAEModel.from_pretrained(folder / "vae").config.base_channels == 8
    assert OpenSoraT2V_v1_3.from_pretrained(folder / "any93x640x640").config.sparse_n == 4
    assert MT5EncoderModel.from_pretrained(folder / "mt5-xxl").config.d_model == 32


def test_nan_and_integer_weights_are_reported(vae, tmp_path, capsys):
    state = vae.torch_state()
    first, second, third = [name for name in state if name.endswith("conv.weight") and "wavelet" not in name][:3]
    state[first][0], state[second][0] = np.nan, np.inf
    tensors = {name: ArrayTensor(value) for name, value in state.items()}
    tensors[third] = ArrayTensor(np.ones(state[third].shape, np.int8))
    write_safetensors(tmp_path / "x.safetensors", tensors)
    WFVAEModel.from_pretrained(tmp_path / "x.safetensors", config=VAE)
    nan, integers = capsys.readouterr().err.splitlines()
    assert f"x.safetensors: 2 tensors hold NaN or infinity ({first}, {second})" in nan
    assert f"x.safetensors: 1 tensors have an integer type, but the model's type is float ({third}: I8)" in integers
    vae.save_pretrained(tmp_path / "sound")
    WFVAEModel.from_pretrained(tmp_path / "sound")
    assert capsys.readouterr().err == ""


def test_hand_edited_config_is_validated(vae, tmp_path):
    vae.save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    text = config.read_text()
    config.write_text("\ufeff" + text, encoding="utf-8")
    assert WFVAEModel.from_pretrained(tmp_path).config == vae.config
    for old, new in (
        ('"base_channels": 8', '"base_channels": "8"'),
        ('"dropout": 0.0', '"dropout": "0"'),
        ('"use_attention": true', '"use_attention": "True"'),
    ):
        config.write_text(config.read_text(encoding="utf-8-sig").replace(old, new))
    assert WFVAEModel.from_pretrained(tmp_path).config == vae.config
    for old, new, message in (
        ('"base_channels": 8', '"base_channels": "eight"', "base_channels 'eight' is not an integer"),
        ('"base_channels": 8', '"base_channels": 8.5', "base_channels 8.5 is not an integer"),
        ('"base_channels": 8', '"base_channels": true', "base_channels True is not an integer"),
        ('"base_channels": 8', '"base_channels": null', "base_channels None is not an integer"),
        ('"base_channels": 8', '"base_channels": 8, "base_channels": 16', "'base_channels' comes twice"),
        ('"dropout": 0.0', '"dropout": NaN', "NaN is not a number in json"),
        ('"dropout": 0.0', '"dropout": "nan"', "dropout 'nan' is not a finite number"),
        ('"dropout": 0.0', '"dropout": 1e999', "1e999 is out of range"),
        ('"norm_type": "layernorm"', '"norm_type": 3', "norm_type 3 is not a string"),
        ('"base_channels": 8', '"base_chanels": 8', "no key 'base_chanels' (did you mean base_channels?)"),
    ):
        assert old in text
        config.write_text(text.replace(old, new))
        with pytest.raises(ValueError, match=f"config.json: .*{re.escape(message)}"):
            WFVAEModel.from_pretrained(tmp_path)


OTHER_MODELS = {
    "CausalVAEModel": {"_class_name": "CausalVAEModel", "hidden_size": 128},
    "LatteT2V": {"_class_name": "LatteT2V"},
    "OpenSoraT2V": {"_class_name": "OpenSoraT2V", "num_layers": 32},
    "AutoencoderKL": {"_class_name": "AutoencoderKL"},
    "HunyuanVideoTransformer3DModel": {"_class_name": "HunyuanVideoTransformer3DModel"},
    "CogVideoXTransformer3DModel": {"_class_name": "CogVideoXTransformer3DModel"},
    "llama": {"model_type": "llama"},
    "umt5": {"model_type": "umt5", "d_model": 8},
    "CLIPTextModel": {"architectures": ["CLIPTextModel"]},
    "mt5": {"model_type": "mt5", **TEXT},
    "t5": TEXT,
    "WFVAEModel": {"latent_dim": 8, "base_channels": 8},
    "OpenSoraT2V_v1_3": {"_class_name": "OpenSoraT2V_v1_3"},
    "OpenSoraInpaint_v1_3": {"_class_name": "OpenSoraInpaint_v1_3"},
}


@pytest.mark.parametrize("kind", OTHER_MODELS)
def test_folders_of_other_models_are_rejected(tmp_path, kind):
    """By every model of another class, before the weights are opened."""
    (tmp_path / "config.json").write_text(json.dumps(OTHER_MODELS[kind]))
    (tmp_path / "x.ckpt").write_bytes(b"never read")
    for model in (WFVAEModel, OpenSoraT2V_v1_3, OpenSoraInpaint_v1_3, MT5EncoderModel):
        if kind not in (model.__name__, *model.published_as):
            with pytest.raises(ValueError, match=f"{tmp_path}: holds an? {kind}.*; expected an? {model.__name__}"):
                model.from_pretrained(tmp_path)
            with pytest.raises(ValueError, match=f"{tmp_path}: holds an? {kind}.*; --flag needs an? {model.__name__}"):
                model.published_config(tmp_path, "--flag")
