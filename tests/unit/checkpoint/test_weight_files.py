"""Finding weights and config.json, and opening checkpoints of other trainers."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from tiny_models import VAE
from torch_files import SAVERS, as_tensors, refused_cheaply, save_zip, tensor

from opensora.checkpoint.files import find_weights, open_state, read_config
from opensora.checkpoint.formats.safetensors import write_safetensors
from opensora.checkpoint.lazy_tensor import ArrayTensor
from opensora.models import WFVAEModel


def test_index_with_a_shard_outside_its_folder_is_rejected(tmp_path):
    (tmp_path / "a.index.json").write_text(json.dumps({"weight_map": {"w": "../secret.safetensors"}}))
    with pytest.raises(ValueError, match="not in the folder of the index"):
        open_state(tmp_path / "a.index.json")


def test_index_that_names_itself_is_rejected(tmp_path):
    (tmp_path / "a.index.json").write_text(json.dumps({"weight_map": {"w": "a.index.json"}}))
    with pytest.raises(ValueError, match="not a file of weights"):
        open_state(tmp_path / "a.index.json")


@pytest.mark.parametrize(
    "files, message",
    [
        (["a.safetensors", "b.safetensors"], "several files of weights .a.safetensors, b.safetensors"),
        (["a.ckpt", "b.ckpt"], "several files of weights .a.ckpt, b.ckpt"),
    ],
)
def test_ambiguous_folder_is_rejected(tmp_path, files, message):
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=message):
        open_state(tmp_path)


def test_files_are_searched_for_in_order(tmp_path):
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


def test_paths_are_resolved_in_ckpt_and_in_the_hub_cache(tmp_path, monkeypatch):
    """The path itself, the same path in ckpt/, and the snapshot of a Hugging Face cache that refs/main names."""
    vae = WFVAEModel(**VAE)
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


# Contents of checkpoints of other trainers, and the expected values of EMA and plain weights.
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
def test_checkpoints_of_other_trainers_open(tmp_path, format, content, ema, plain):
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


def test_wrapper_names_are_removed_in_every_format(tmp_path):
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
    assert set(open_state(tmp_path / "x.safetensors")) == set(kept), "the prefix is only removed if all names have it"
    twice = {"a._orig_mod.b": PLAIN["b"], "a.b": PLAIN["b"]}
    write_safetensors(tmp_path / "x.safetensors", {name: ArrayTensor(value) for name, value in twice.items()})
    with pytest.raises(ValueError, match="x.safetensors: has tensors twice"):
        open_state(tmp_path / "x.safetensors")


def test_zero3_is_rejected_and_unreadable_ema_is_reported(tmp_path, capsys):
    save_zip(tmp_path / "x.pt", {"module": {"w": tensor(np.zeros(0, np.float32))}, "ds_version": "0.12"})
    with pytest.raises(ValueError, match="zero_to_fp32.py"):
        open_state(tmp_path / "x.pt")
    save_zip(tmp_path / "x.pt", {"model": as_tensors(PLAIN), "ema": argparse.Namespace()})
    assert open_state(tmp_path / "x.pt")["b"].numpy()[0] == 1
    assert "ema is an object of argparse.Namespace" in capsys.readouterr().err


def test_hostile_json_is_rejected_cheaply(tmp_path):
    for name in ("config.json", "x.index.json"):
        for text in ("[" * 200_000, '{"a":' * 200_000, '{"weight_map": ' + "[" * 200_000, '{"a": ' + "9" * 10**6 + "}"):
            (tmp_path / name).write_text(text)
            refused_cheaply(tmp_path / name, read=read_config if name == "config.json" else open_state)
