"""From files of every format to a model and back."""
from __future__ import annotations

import json
import os
import resource

import mindspore as ms
import numpy as np
import pytest
from safetensors.numpy import load_file
from torch_files import SAVERS, save_zip, tensor

from opensora.models import MT5EncoderModel, OpenSoraT2V_v1_3, WFVAEModel
from opensora.models.checkpoint_files import find_weights, open_state, read_config
from opensora.models.safetensors_file import read_safetensors, write_safetensors
from opensora.models.tensor_file import ArrayTensor

TINY_VAE = dict(base_channels=8, encoder_num_resblocks=1, encoder_energy_flow_hidden_size=8, decoder_num_resblocks=1,
                decoder_energy_flow_hidden_size=8, norm_type="layernorm", t_interpolation="trilinear")
TINY_T5 = dict(vocab_size=20, d_model=8, d_kv=4, d_ff=16, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu")


@pytest.fixture(scope="module")
def vae():
    return WFVAEModel(**TINY_VAE)


def same(a: dict, b: dict) -> bool:
    return set(a) == set(b) and all((a[key] == b[key]).all() for key in a)


def write_config(folder, config=None, **changes):
    folder.mkdir(exist_ok=True)
    config = config or {"_class_name": "WFVAEModel", **TINY_VAE}
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def as_tensors(state: dict) -> dict:
    return {key: tensor(np.ascontiguousarray(value)) for key, value in state.items()}


def test_the_state_holds_the_published_names(vae):
    state = vae.torch_state()
    assert state["encoder.wavelet_transform_in.gh_v_conv.conv.weight"].shape == (1, 1, 2, 2, 2)
    assert "decoder.up2.1.conv.conv.weight" in state and "encoder.down1.1.norm1.norm.weight" in state
    assert (state["decoder.inverse_wavelet_transform_l1.ad"] == np.array([[[[1, 1], [-1, -1]]]]) / 2).all()


def test_save_pretrained_comes_back(vae, tmp_path):
    vae.save_pretrained(tmp_path)
    assert same(load_file(tmp_path / "diffusion_pytorch_model.safetensors"), vae.torch_state())
    loaded = WFVAEModel.from_pretrained(tmp_path)
    assert same(loaded.torch_state(), vae.torch_state()) and loaded.config == vae.config


@pytest.mark.parametrize("container", [
    lambda state: state, lambda state: {"state_dict": state}, lambda state: {"state_dict": {"gen_model": state}},
    lambda state: {"epoch": 1, "ema_state_dict": {f"module.{k}": v for k, v in state.items()},
                   "state_dict": {"gen_model": {}}}], ids=["plain", "state_dict", "gen_model", "ema"])
@pytest.mark.parametrize("format", list(SAVERS))
def test_torch_checkpoints(vae, tmp_path, container, format):
    write_config(tmp_path)
    SAVERS[format](tmp_path / "merged.ckpt", container(as_tensors(vae.torch_state())))
    assert same(WFVAEModel.from_pretrained(tmp_path).torch_state(), vae.torch_state())
    config = read_config(tmp_path)
    assert same(WFVAEModel.from_pretrained(tmp_path / "merged.ckpt", config=config).torch_state(), vae.torch_state())


def test_ema_weights_come_first(vae, tmp_path):
    write_config(tmp_path)
    state = vae.torch_state()
    doubled = {key: value if "wavelet" in key else value * 2 for key, value in state.items()}
    save_zip(tmp_path / "merged.ckpt", {"ema_state_dict": {f"module.{k}": v for k, v in as_tensors(doubled).items()},
                                        "state_dict": {"gen_model": as_tensors(state)}})
    assert same(WFVAEModel.from_pretrained(tmp_path).torch_state(), doubled)
    assert same(WFVAEModel.from_pretrained(tmp_path, use_ema=False).torch_state(), state)


def test_shards_and_mindspore_checkpoints(vae, tmp_path):
    write_config(tmp_path / "shards")
    state = vae.torch_state()
    names = sorted(state)
    weight_map = {}
    for i, part in enumerate((names[::2], names[1::2])):
        file = f"model-{i + 1}-of-2.safetensors"
        write_safetensors(tmp_path / "shards" / file, {name: ArrayTensor(state[name]) for name in part})
        weight_map.update({name: file for name in part})
    (tmp_path / "shards/diffusion_pytorch_model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert same(WFVAEModel.from_pretrained(tmp_path / "shards").torch_state(), state)
    ms.save_checkpoint(vae, str(tmp_path / "vae.ckpt"))
    assert same(WFVAEModel.from_pretrained(tmp_path / "vae.ckpt", config=TINY_VAE).torch_state(), state)
    (tmp_path / "shards/model-2-of-2.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="model-2-of-2.safetensors: missing"):
        WFVAEModel.from_pretrained(tmp_path / "shards")


def test_the_decoder_of_t5_is_skipped_and_tied_names_are_one():
    model = MT5EncoderModel(**TINY_T5, is_encoder_decoder=True)
    state = model.torch_state()
    assert (state["shared.weight"] == state["encoder.embed_tokens.weight"]).all()
    doubled = {name: value * 2 for name, value in state.items() if name != "encoder.embed_tokens.weight"}
    missing, unexpected = model.load_torch_state({**doubled, "decoder.x": np.ones(3), "lm_head.weight": np.ones(3)})
    assert not missing and not unexpected
    assert (model.torch_state()["encoder.embed_tokens.weight"] == 2 * state["shared.weight"]).all()


def test_what_does_not_fit_changes_nothing(vae):
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


def test_bfloat16_models_keep_their_norms_in_float32(vae, tmp_path):
    vae.save_pretrained(tmp_path)
    loaded = WFVAEModel.from_pretrained(tmp_path, dtype=ms.bfloat16)
    kinds = {name: parameter.dtype for name, parameter in loaded.parameters_and_names()}
    assert kinds["encoder.norm_out.norm.weight"] == ms.float32
    assert kinds["encoder.conv_out.conv.weight"] == ms.bfloat16
    for name, value in loaded.torch_state().items():
        assert np.allclose(value, vae.torch_state()[name], rtol=1e-2)


def test_loading_reads_no_random_numbers(vae, tmp_path):
    """Parameters are not drawn first only to be overwritten."""
    vae.save_pretrained(tmp_path)
    ms.set_seed(7)
    expected = ms.ops.standard_normal((3,)).asnumpy()
    ms.set_seed(7)
    WFVAEModel.from_pretrained(tmp_path)
    assert (ms.ops.standard_normal((3,)).asnumpy() == expected).all()


def test_clear_errors(vae, tmp_path):
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


def test_an_index_cannot_lead_out_of_its_folder(tmp_path):
    (tmp_path / "a.index.json").write_text(json.dumps({"weight_map": {"w": "../secret.safetensors"}}))
    with pytest.raises(ValueError, match="not in the index's own folder"):
        open_state(tmp_path / "a.index.json")


def test_an_index_cannot_name_itself(tmp_path):
    (tmp_path / "a.index.json").write_text(json.dumps({"weight_map": {"w": "a.index.json"}}))
    with pytest.raises(ValueError, match="no file of weights"):
        open_state(tmp_path / "a.index.json")


@pytest.mark.parametrize("dtype", [ms.float32, ms.float16, ms.bfloat16, ms.int64, ms.bool_])
def test_mindspore_types(tmp_path, dtype):
    values = ms.Tensor(np.arange(6).reshape(2, 3)).astype(dtype)
    ms.save_checkpoint([{"name": "w", "data": values}, {"name": "b", "data": ms.Tensor(3.0, ms.float32)}],
                       str(tmp_path / "x.ckpt"), append_dict={"note": "a text"})
    state = open_state(tmp_path / "x.ckpt")
    expected = values.astype(ms.float32).asnumpy()
    assert set(state) == {"w", "b"} and state["w"].shape == (2, 3)
    assert (state["w"].numpy().astype(np.float32) == expected).all() and state["b"].numpy() == 3


def test_mindspore_slices_and_damage(tmp_path, monkeypatch):
    """MindSpore cuts tensors over 512 MB into slices; here into slices of a kilobyte."""
    path = tmp_path / "x.ckpt"
    monkeypatch.setattr("mindspore.train.serialization.SLICE_SIZE", 1)
    array = np.random.RandomState(0).standard_normal((40, 25)).astype(np.float32)
    tensors = [{"name": "w", "data": ms.Tensor(array)}, {"name": "b", "data": ms.Tensor(array[0])}]
    ms.save_checkpoint(tensors, str(path), crc_check=True)
    assert path.read_bytes().count(b"Float32") == 5, "four slices and one whole"
    state = open_state(path)
    assert (state["w"].numpy() == array).all() and (state["b"].numpy() == array[0]).all()
    assert b"".join(state["w"].raw()) == array.tobytes()
    data = path.read_bytes()
    for size in (10, 1000, 3000, 4200):
        path.write_bytes(data[:size])
        with pytest.raises(ValueError, match="x.ckpt"):
            open_state(path)


@pytest.mark.parametrize("files, message", [
    (["a.safetensors", "b.safetensors"], "several files of weights .a.safetensors, b.safetensors"),
    (["a.ckpt", "b.ckpt"], "several files of weights .a.ckpt, b.ckpt")])
def test_a_choice_is_left_to_the_user(tmp_path, files, message):
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=message):
        open_state(tmp_path)


def test_files_are_looked_for_in_order(tmp_path):
    names = ["diffusion_pytorch_model.safetensors", "model.safetensors", "pytorch_model.bin", "merged.ckpt",
             "last.ckpt"]
    for name in reversed(names):
        (tmp_path / name).touch()
        assert find_weights(tmp_path).name == name
    (tmp_path / "note.safetensors").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ValueError, match="git lfs pull"):
        open_state(tmp_path / "note.safetensors")


@pytest.mark.parametrize("header", [
    b'{"w": {"dtype": "F32", "shape": [-1, -2], "data_offsets": [0, 8]}}',
    b'{"w": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}',
    b'{"w": {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}}',
    b'{"w": {"dtype": "F32", "shape": 2, "data_offsets": [0, 8]}}', b'{"w": 3}', b"{nonsense"])
def test_damaged_safetensors_headers(tmp_path, header):
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(ValueError, match="x.safetensors: "):
        read_safetensors(path)


def test_a_disk_that_fills_up_while_writing(tmp_path, monkeypatch):
    """Where room cannot be reserved, as on some network disks."""
    monkeypatch.delattr(os, "posix_fallocate")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        with pytest.raises(OSError, match="x.safetensors: cannot hold 0.002 GB"):
            write_safetensors(tmp_path / "x.safetensors", {"w": ArrayTensor(np.zeros(500_000, np.float32))})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("keep", [4, 40, 0.5, 0.99])
def test_truncated_safetensors(tmp_path, keep):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {str(i): ArrayTensor(np.ones(100, np.float32)) for i in range(5)})
    data = path.read_bytes()
    path.write_bytes(data[:keep if keep > 1 else int(len(data) * keep)])
    with pytest.raises(ValueError, match="x.safetensors"):
        read_safetensors(path)


def test_release_tiny_loads_as_it_is(release_tiny):
    folder = release_tiny / "LanguageBind/Open-Sora-Plan-v1.3.0"
    assert WFVAEModel.from_pretrained(folder / "vae").config.base_channels == 8
    assert OpenSoraT2V_v1_3.from_pretrained(folder / "any93x640x640").config.sparse_n == 4
    assert MT5EncoderModel.from_pretrained(release_tiny / "google/mt5-xxl").config.d_model == 32
