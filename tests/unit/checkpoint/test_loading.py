"""From files of every format to a model and back."""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import load_file
from torch_files import SAVERS, refused_cheaply, save_zip, tensor
from torch_states import TINY_T5, TINY_VAE, as_tensors, same

from opensora.checkpoint.files import find_weights, open_state, read_config
from opensora.checkpoint.formats.safetensors import read_safetensors, write_safetensors
from opensora.checkpoint.lazy_tensor import NUMPY_TYPES, ArrayTensor, is_finite, is_finite_piece
from opensora.models import MT5EncoderModel, OpenSoraInpaint_v1_3, OpenSoraT2V_v1_3, WFVAEModel


@pytest.fixture(scope="module")
def vae():
    return WFVAEModel(**TINY_VAE)


def write_config(folder, config=None, **changes):
    folder.mkdir(exist_ok=True)
    config = config or {"_class_name": "WFVAEModel", **TINY_VAE}
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


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
    save_zip(
        tmp_path / "merged.ckpt",
        {
            "ema_state_dict": {f"module.{k}": v for k, v in as_tensors(doubled).items()},
            "state_dict": {"gen_model": as_tensors(state)},
        },
    )
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
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )
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
    ms.save_checkpoint(
        [{"name": "w", "data": values}, {"name": "b", "data": ms.Tensor(3.0, ms.float32)}],
        str(tmp_path / "x.ckpt"),
        append_dict={"note": "a text"},
    )
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


@pytest.mark.parametrize(
    "files, message",
    [
        (["a.safetensors", "b.safetensors"], "several files of weights .a.safetensors, b.safetensors"),
        (["a.ckpt", "b.ckpt"], "several files of weights .a.ckpt, b.ckpt"),
    ],
)
def test_a_choice_is_left_to_the_user(tmp_path, files, message):
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=message):
        open_state(tmp_path)


def test_files_are_looked_for_in_order(tmp_path):
    names = [
        "diffusion_pytorch_model.safetensors",
        "model.safetensors",
        "pytorch_model.bin",
        "merged.ckpt",
        "last.ckpt",
    ]
    for name in reversed(names):
        (tmp_path / name).touch()
        assert find_weights(tmp_path).name == name
    (tmp_path / "note.safetensors").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ValueError, match="git lfs pull"):
        open_state(tmp_path / "note.safetensors")


@pytest.mark.parametrize(
    "header",
    [
        b'{"w": {"dtype": "F32", "shape": [-1, -2], "data_offsets": [0, 8]}}',
        b'{"w": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}',
        b'{"w": {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}}',
        b'{"w": {"dtype": "F32", "shape": 2, "data_offsets": [0, 8]}}',
        b'{"w": 3}',
        b"{nonsense",
    ],
)
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
    path.write_bytes(data[: keep if keep > 1 else int(len(data) * keep)])
    with pytest.raises(ValueError, match="x.safetensors"):
        read_safetensors(path)


def test_release_tiny_loads_as_it_is(release_tiny):
    folder = release_tiny / "LanguageBind/Open-Sora-Plan-v1.3.0"
    assert WFVAEModel.from_pretrained(folder / "vae").config.base_channels == 8
    assert OpenSoraT2V_v1_3.from_pretrained(folder / "any93x640x640").config.sparse_n == 4
    assert MT5EncoderModel.from_pretrained(release_tiny / "google/mt5-xxl").config.d_model == 32


# Checkpoints as other trainers leave them: what is in the file, and the values of EMA and plain weights found.
PLAIN, EMA = (
    dict(zip(("a.weight", "b"), (np.full((2, 3), value, np.float32), np.full(4, value, np.float32))))
    for value in (1, 2)
)


def wrapped(state: dict, *prefixes: str) -> dict:
    for prefix in prefixes:
        state = {prefix + name: value for name, value in state.items()}
    return state


@pytest.mark.parametrize(
    "content, ema, plain",
    [
        ({"model": PLAIN, "ema": EMA}, 2, 1),
        ({"ema": EMA}, 2, None),
        ({"module": PLAIN, "ds_version": "0.12"}, 1, 1),
        ({"model": PLAIN, "ema": {"state_dict": EMA}, "step": 5}, 2, 1),
        ({"state_dict": PLAIN, "ema_state_dict": {}}, 1, 1),
        ({"state_dict": {"gen_model": PLAIN, "dics_model": EMA}, "ema_state_dict": wrapped(EMA, "module.")}, 2, 1),
        ({"state_dict": {"model": PLAIN, "model_ema": EMA}}, 2, 1),
        ({"model_state_dict": PLAIN, "optimizer": {0: EMA}}, 1, 1),
        (wrapped(PLAIN, "_orig_mod."), 1, 1),
        (wrapped(PLAIN, "_orig_mod.", "module."), 1, 1),
        (wrapped(PLAIN, "module.", "_orig_mod.", "module."), 1, 1),
        ({"module": wrapped(PLAIN, "module.")}, 1, 1),
        ({"a._orig_mod.weight": PLAIN["a.weight"], "b": PLAIN["b"]}, 1, 1),
        ({"_fsdp_wrapped_module.a._checkpoint_wrapped_module.weight": PLAIN["a.weight"], "b": PLAIN["b"]}, 1, 1),
        ({"model": {}, "ema": None, **PLAIN}, 1, 1),
    ],
)
@pytest.mark.parametrize("format", list(SAVERS))
def test_checkpoints_of_other_trainers(tmp_path, format, content, ema, plain):
    def tensors(value):
        if isinstance(value, dict):
            return {key: tensors(item) for key, item in value.items()}
        return tensor(value) if isinstance(value, np.ndarray) else value

    SAVERS[format](tmp_path / "x.pt", tensors(content))
    for use_ema, expected in ((True, ema), (False, plain)):
        if expected is None:
            with pytest.raises(ValueError, match="EMA weights only"):
                open_state(tmp_path / "x.pt", use_ema)
        else:
            state = open_state(tmp_path / "x.pt", use_ema)
            assert {name: value.numpy().max() for name, value in state.items()} == {"a.weight": expected, "b": expected}


def test_wrapped_names_in_every_format(tmp_path):
    state = wrapped(PLAIN, "_orig_mod.", "module.")
    write_safetensors(tmp_path / "x.safetensors", {name: ArrayTensor(value) for name, value in state.items()})
    (tmp_path / "x.index.json").write_text(json.dumps({"weight_map": {name: "x.safetensors" for name in state}}))
    ms.save_checkpoint(
        [{"name": name, "data": ms.Tensor(value)} for name, value in state.items()], str(tmp_path / "x.ckpt")
    )
    for file in ("x.safetensors", "x.index.json", "x.ckpt"):
        assert set(open_state(tmp_path / file)) == set(PLAIN)
    kept = {"module.a": PLAIN["b"], "b": PLAIN["b"]}
    write_safetensors(tmp_path / "x.safetensors", {name: ArrayTensor(value) for name, value in kept.items()})
    assert set(open_state(tmp_path / "x.safetensors")) == set(kept), "not all names have it"
    twice = {"a._orig_mod.b": PLAIN["b"], "a.b": PLAIN["b"]}
    write_safetensors(tmp_path / "x.safetensors", {name: ArrayTensor(value) for name, value in twice.items()})
    with pytest.raises(ValueError, match="x.safetensors: has tensors twice"):
        open_state(tmp_path / "x.safetensors")


def test_zero3_and_unreadable_averages(tmp_path, capsys):
    save_zip(tmp_path / "x.pt", {"module": {"w": tensor(np.zeros(0, np.float32))}, "ds_version": "0.12"})
    with pytest.raises(ValueError, match="zero_to_fp32.py"):
        open_state(tmp_path / "x.pt")
    save_zip(tmp_path / "x.pt", {"model": as_tensors(PLAIN), "ema": argparse.Namespace()})
    assert open_state(tmp_path / "x.pt")["b"].numpy()[0] == 1
    assert "ema is an object of argparse.Namespace" in capsys.readouterr().err


def entry(begin: int, end: int, **changes) -> dict:
    return {"dtype": "F32", "shape": [(end - begin) // 4], "data_offsets": [begin, end], **changes}


SAFETENSORS_HEADERS = [
    json.dumps(header)
    for header in (
        {"a": entry(0, 32)},
        {"b": entry(16, 32), "a": entry(0, 16)},
        {"z": entry(0, 0), "a": entry(0, 32)},
        {"a": entry(0, 32), "__metadata__": {"format": "pt"}},
        {"a": entry(0, 32), "__metadata__": None},
        {"a": entry(0, 32, more=1)},
        {"a": entry(0, 16), "b": entry(0, 32)},
        {"a": entry(0, 32), "b": entry(0, 32)},
        {"a": entry(0, 8), "b": entry(16, 32)},
        {"a": entry(4, 32)},
        {"a": entry(0, 16)},
        {"a": entry(0, 36)},
        {"a": entry(0, 32, shape=[7])},
        {"a": entry(0, 32, shape=[8.0])},
        {"a": entry(0, 32, shape=[True, 8])},
        {"a": entry(0, 32, shape=[-8])},
        {"a": entry(0, 32, shape=[1 << 40, 1 << 40])},
        {"a": entry(0, 32, dtype="f32")},
        {"a": entry(0, 32, dtype="I64")},
        {"a": entry(0, 32, data_offsets=[0, 32, 32])},
        {"a": entry(0, 32, shape=None)},
        {"a": entry(0, 32, data_offsets=[32, 0])},
        {"a": entry(0, 32), "__metadata__": {"format": 3}},
        {"a": entry(0, 32), "__metadata__": []},
        [entry(0, 32)],
    )
] + [
    '{"a": NaN}',
    json.dumps({"a": entry(0, 32)}) + "   ",
    json.dumps({"a": entry(0, 32)}) + "x",
    json.dumps({"a": entry(0, 32)}).replace("32", "3.2e1"),
    json.dumps({"\ud800": entry(0, 32)}),
]


@pytest.mark.parametrize("header", SAFETENSORS_HEADERS)
def test_safetensors_are_refused_as_by_the_reference(tmp_path, header):
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + bytes(32))
    try:
        expected = load_file(path)
    except SafetensorError:
        refused_cheaply(path)
    else:
        assert set(read_safetensors(path)) == set(expected)


def write_header(path, header: str, content: bytes = bytes(32)):
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + content)


def test_hostile_safetensors_headers(tmp_path):
    path = tmp_path / "x.safetensors"
    one = json.dumps(entry(0, 32))
    for header, message in (
        (f'{{"a": {one}, "a": {one}}}', "'a' comes twice"),
        ('{"a":' + "[" * 200_000, "nested too deep"),
        (json.dumps({"a": entry(0, 32, shape=[1] * 150_000)}), "150000 axes"),
        (json.dumps({"a": entry(0, 32, shape=[10**18] * 30)}), "a shape that is not made of sizes"),
        ('{"a": ' + "9" * 100_000 + "}", "100000 digits"),
        ('{"a":' * 200_000, "nested too deep"),
        (json.dumps({"a": entry(0, 32, dtype="F8_E8M0", shape=[32])}), "'a' is of type F8_E8M0, which is not read"),
        (json.dumps({"a": entry(0, 32, dtype="C64", shape=[4])}), "'a' is of type C64, which is not read"),
    ):
        write_header(path, header)
        assert message in refused_cheaply(path)
    path.write_bytes(b"\xff" * 7 + b"\x7f" + b"{}")
    assert "not a safetensors file" in refused_cheaply(path)


def test_hostile_json(tmp_path):
    for name in ("config.json", "x.index.json"):
        for text in ("[" * 200_000, '{"a":' * 200_000, '{"weight_map": ' + "[" * 200_000, '{"a": ' + "9" * 10**6 + "}"):
            (tmp_path / name).write_text(text)
            refused_cheaply(tmp_path / name, read=read_config if name == "config.json" else open_state)


def test_hostile_mindspore_files(tmp_path):
    def field(number: int, content: bytes) -> bytes:
        length, size = b"", len(content)
        while True:
            length += bytes([size & 127 | (128 if size > 127 else 0)])
            size >>= 7
            if not size:
                return bytes([number << 3 | 2]) + length + content

    def tensor_field(shape: bytes, size: int = 4) -> bytes:
        return field(1, field(1, b"w") + field(2, shape + field(2, b"Float32") + field(3, bytes(size))))

    path = tmp_path / "x.ckpt"
    huge = b"\x08" + b"\xff" * 9 + b"\x01"
    for data, message in (
        (tensor_field(b"\x08\x01" * 150_000), "not a MindSpore checkpoint"),
        (tensor_field(huge), "not made of sizes"),
        (tensor_field(b"\x08\xff\xff\xff\x7f" * 30), "2**48"),
        (field(1, b"\x0a\x00" * 100_000), "not a MindSpore checkpoint"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\x7f", "truncated|cut off"),
        (b"\x0a" + b"\xff" * 20, ""),
        (tensor_field(b"\x08\x01") + tensor_field(b"\x08\x02", 8), "not a MindSpore checkpoint"),
    ):
        path.write_bytes(data)
        assert re.search(message.replace("**", r"\*\*"), refused_cheaply(path))
    path.write_bytes(tensor_field(b"\x08\x01"))
    assert open_state(path)["w"].shape == (1,)


def test_nan_and_integer_weights_are_said(vae, tmp_path, capsys):
    state = vae.torch_state()
    first, second, third = [name for name in state if name.endswith("conv.weight") and "wavelet" not in name][:3]
    state[first][0], state[second][0] = np.nan, np.inf
    tensors = {name: ArrayTensor(value) for name, value in state.items()}
    tensors[third] = ArrayTensor(np.ones(state[third].shape, np.int8))
    write_safetensors(tmp_path / "x.safetensors", tensors)
    WFVAEModel.from_pretrained(tmp_path / "x.safetensors", config=TINY_VAE)
    nan, integers = capsys.readouterr().err.splitlines()
    assert f"x.safetensors: 2 tensors hold NaN or infinity ({first}, {second})" in nan
    assert f"x.safetensors: 1 tensors are integers where the model has floats ({third}: I8)" in integers
    vae.save_pretrained(tmp_path / "sound")
    WFVAEModel.from_pretrained(tmp_path / "sound")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "kind, bad",
    [
        ("F32", np.float32("nan")),
        ("F16", np.float16("inf")),
        ("F64", -np.inf),
        ("BF16", np.uint16(0x7F80)),
        ("F8_E4M3", np.uint8(0xFF)),
        ("F8_E5M2", np.uint8(0x7C)),
    ],
)
def test_not_finite_in_every_type(kind, bad):
    values = np.zeros(1000, NUMPY_TYPES[kind])
    assert is_finite_piece(values.tobytes(), kind)
    values[-1] = bad
    assert not is_finite_piece(values.tobytes(), kind)
    assert is_finite(np.full(1000, 3e38, np.float32)), "whose sum is not finite"


def test_a_config_as_people_edit_it(vae, tmp_path):
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
        ('"norm_type": "layernorm"', '"norm_type": 3', "norm_type 3 is not a text"),
        ('"base_channels": 8', '"base_chanels": 8', "no key 'base_chanels' (did you mean base_channels?)"),
    ):
        assert old in text
        config.write_text(text.replace(old, new))
        with pytest.raises(ValueError, match=f"config.json: .*{re.escape(message)}"):
            WFVAEModel.from_pretrained(tmp_path)


def test_places_where_weights_are_found(vae, tmp_path, monkeypatch):
    """As given, under ckpt/, and in a Hugging Face cache, whose snapshot refs/main names."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="ORG/NAME/vae: no such file or folder, nor ckpt/ORG/NAME/vae"):
        find_weights("ORG/NAME/vae")
    vae.save_pretrained(tmp_path / "ckpt/ORG/NAME/vae")
    assert find_weights("ORG/NAME/vae").parent == Path("ckpt/ORG/NAME/vae")
    assert WFVAEModel.from_pretrained("ORG/NAME/vae").config == vae.config
    cache = tmp_path / "hub/models--ORG--NAME"
    for revision in ("0a1b", "2c3d"):
        vae.save_pretrained(cache / "snapshots" / revision / "vae")
    with pytest.raises(FileNotFoundError, match="2 snapshots, and refs/main names none"):
        find_weights(cache / "vae")
    (cache / "refs").mkdir()
    (cache / "refs/main").write_text("2c3d\n")
    assert find_weights(cache / "vae").parent == cache / "snapshots/2c3d/vae"
    assert WFVAEModel.from_pretrained(cache / "vae").config == vae.config
    assert find_weights(cache / "snapshots/0a1b/vae").parent == cache / "snapshots/0a1b/vae"
    with pytest.raises(FileNotFoundError, match="the folder holds a whole pipeline; name one of its folders: vae"):
        read_config(cache)
    (cache / "snapshots/2c3d/model_index.json").write_text('{"_class_name": "CogVideoXPipeline"}')
    with pytest.raises(FileNotFoundError, match="a whole CogVideoXPipeline"):
        read_config(cache)


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
    "mt5": {"model_type": "mt5", **TINY_T5},
    "t5": TINY_T5,
    "WFVAEModel": {"latent_dim": 8, "base_channels": 8},
    "OpenSoraT2V_v1_3": {"_class_name": "OpenSoraT2V_v1_3"},
    "OpenSoraInpaint_v1_3": {"_class_name": "OpenSoraInpaint_v1_3"},
}


@pytest.mark.parametrize("kind", OTHER_MODELS)
def test_folders_of_other_models_are_refused(tmp_path, kind):
    """By every model they are not of, before weights are looked at."""
    (tmp_path / "config.json").write_text(json.dumps(OTHER_MODELS[kind]))
    (tmp_path / "x.ckpt").write_bytes(b"weights that are not read")
    for model in (WFVAEModel, OpenSoraT2V_v1_3, OpenSoraInpaint_v1_3, MT5EncoderModel):
        if kind not in (model.__name__, *model.published_as):
            with pytest.raises(ValueError, match=f"{tmp_path}: holds an? {kind}.* needs an? {model.__name__}"):
                model.from_pretrained(tmp_path)
            with pytest.raises(ValueError, match=f"{tmp_path}: holds an? {kind}.*; --flag needs an? {model.__name__}"):
                model.published_config(tmp_path, "--flag")
