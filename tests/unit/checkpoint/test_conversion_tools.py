"""The conversion tools, run as commands."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import time
from functools import partial

import mindspore as ms
import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny_models import TEXT, VAE, make_published_release, save_vae_checkpoint
from torch_files import Storage, View, as_tensors, same, save_zip, tensor

from opensora.checkpoint.files import open_state
from opensora.checkpoint.formats.safetensors import write_safetensors
from opensora.checkpoint.lazy_tensor import ArrayTensor
from opensora.models import MT5EncoderModel, WFVAEModel

WFVAE_TOOL = "tools/model_conversion/convert_wfvae.py"
TORCH_TOOL = "tools/model_conversion/convert_pytorch_ckpt_to_safetensors.py"
MS_TOOL = "tools/model_conversion/convert_ms_to_safetensors.py"
MERGE_TOOL = "tools/ckpt/merge_safetensors.py"


@pytest.fixture(scope="module")
def vae_folder(tmp_path_factory):
    """A training checkpoint with EMA and plain weights, and config.json."""
    folder = tmp_path_factory.mktemp("vae")
    save_vae_checkpoint(folder, WFVAEModel(**VAE).torch_state())
    return folder


@pytest.fixture(scope="module")
def transformer(tmp_path_factory):
    """A folder of sharded safetensors."""
    return make_published_release(tmp_path_factory.mktemp("release")) / "any93x640x640"


def convert(run, tool, src, target, config, *more, **kwargs):
    return run(tool, "--src", src, "--target", target, "--config", config, *more, **kwargs)


def rejected(finished, *words) -> bool:
    """Whether a command failed with exit code 1 and a one-line error with these words, without traceback."""
    errors = [line for line in finished.stderr.splitlines() if line.startswith("error: ")]
    return (
        finished.returncode == 1
        and len(errors) == 1
        and "Traceback" not in finished.stderr
        and all(word in errors[0] for word in words)
    )


def test_wfvae_is_converted(run, vae_folder, tmp_path):
    target = tmp_path / "out/model.safetensors"
    for use_ema in ("True", "False"):
        finished = convert(
            run, WFVAE_TOOL, vae_folder / "merged.ckpt", target, vae_folder / "config.json", "--use_ema", use_ema
        )
        assert finished.returncode == 0, finished.stderr
        expected = WFVAEModel.from_pretrained(vae_folder, use_ema=use_ema == "True").torch_state()
        assert same(load_file(target), expected)
    assert os.listdir(target.parent) == ["model.safetensors"]


def test_mt5_keeps_all_names(run, tmp_path):
    state = as_tensors(MT5EncoderModel(**TEXT).torch_state())
    state["encoder.embed_tokens.weight"] = state["shared.weight"]
    state["decoder.embed_tokens.weight"] = tensor(np.ones((300, 32), np.float32))
    state["decoder.final_layer_norm.weight"] = tensor(np.ones(32, np.float32))
    save_zip(tmp_path / "pytorch_model.bin", state)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mt5", **TEXT}))
    target = tmp_path / "model.safetensors"
    before = MT5EncoderModel.from_pretrained(tmp_path).torch_state()
    finished = convert(run, TORCH_TOOL, tmp_path / "pytorch_model.bin", target, tmp_path / "config.json")
    assert finished.returncode == 0, finished.stderr
    assert same(load_file(target), {name: view.storage.elements.reshape(view.shape) for name, view in state.items()})
    os.remove(tmp_path / "pytorch_model.bin")
    assert same(MT5EncoderModel.from_pretrained(tmp_path).torch_state(), before)


def test_torch_shards_are_converted(run, transformer, tmp_path):
    for shard in transformer.glob("*.safetensors"):
        save_zip(tmp_path / f"{shard.stem}.bin", as_tensors(load_file(shard)))
    index = json.loads((transformer / "diffusion_pytorch_model.safetensors.index.json").read_text())
    weight_map = {name: file.replace(".safetensors", ".bin") for name, file in index["weight_map"].items()}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    arguments = tmp_path / "pytorch_model.bin.index.json", tmp_path / "out.safetensors", transformer / "config.json"
    finished = convert(run, TORCH_TOOL, *arguments)
    assert finished.returncode == 0, finished.stderr
    assert same(load_file(tmp_path / "out.safetensors"), {n: t.numpy() for n, t in open_state(transformer).items()})
    (tmp_path / "out.safetensors").unlink()
    lost = next(iter(weight_map.values()))
    (tmp_path / lost).unlink()
    assert rejected(convert(run, TORCH_TOOL, *arguments), lost, "missing")
    assert not (tmp_path / "out.safetensors").exists()


def test_mindspore_checkpoint_is_converted(run, tmp_path):
    vae = WFVAEModel(**VAE)
    extra = ms.Parameter(ms.Tensor(np.ones(3, np.float32)), name="adam_m.encoder")
    ms.save_checkpoint(
        [*({"name": p.name, "data": p} for p in vae.get_parameters()), {"name": "adam_m.encoder", "data": extra}],
        str(tmp_path / "vae.ckpt"),
    )
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "WFVAEModel", **VAE}))
    target = tmp_path / "model.safetensors"
    finished = convert(run, MS_TOOL, tmp_path / "vae.ckpt", target, tmp_path / "config.json")
    assert finished.returncode == 0, finished.stderr
    assert same(load_file(target), vae.torch_state())


def test_shards_are_merged(run, transformer, tmp_path):
    index = "diffusion_pytorch_model.safetensors.index.json"
    finished = run(MERGE_TOOL, "-i", transformer, "-o", tmp_path / "all.safetensors", "-f", index)
    assert finished.returncode == 0, finished.stderr
    merged = load_file(tmp_path / "all.safetensors")
    expected = {}
    for shard in transformer.glob("*.safetensors"):
        expected.update(load_file(shard))
    assert same(merged, expected)


def test_failure_is_one_line_and_leaves_no_file(run, vae_folder, tmp_path):
    src, config, target = vae_folder / "merged.ckpt", vae_folder / "config.json", tmp_path / "out/x.safetensors"
    truncated = tmp_path / "truncated.ckpt"
    truncated.write_bytes(src.read_bytes()[:10000])
    other = tmp_path / "config.json"
    other.write_text(json.dumps({"_class_name": "WFVAEModel", **VAE, "latent_dim": 16}))
    assert rejected(convert(run, WFVAE_TOOL, truncated, target, config), "truncated.ckpt", "damaged")
    assert rejected(convert(run, WFVAE_TOOL, src, target, other), "latent_dim", "(16, 32, 3, 3, 3)")
    assert rejected(convert(run, WFVAE_TOOL, src, target, tmp_path / "no.json"), "no.json")
    assert rejected(convert(run, WFVAE_TOOL, src, tmp_path, config), ".safetensors")
    assert rejected(convert(run, MS_TOOL, src, target, other), "merged.ckpt", "wrong shapes")
    assert rejected(convert(run, WFVAE_TOOL, tmp_path / "no.ckpt", target, config), "no.ckpt")
    assert rejected(run(MERGE_TOOL, "-i", tmp_path, "-o", target, "-f", "no.json"), "no.json")
    assert not target.exists() and not target.parent.exists()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.fixture(scope="module")
def ballasted(vae_folder, tmp_path_factory):
    """A checkpoint of more than 2 MB."""
    path = tmp_path_factory.mktemp("big") / "big.ckpt"
    state = as_tensors(WFVAEModel(**VAE).torch_state())
    save_zip(path, {**state, "ballast": tensor(np.ones(500000, np.float32))})
    return path


def test_full_disk_is_reported(run, vae_folder, ballasted, small_disk):
    finished = convert(run, WFVAE_TOOL, ballasted, small_disk / "x.safetensors", vae_folder / "config.json")
    assert rejected(finished, "x.safetensors", "cannot hold")
    assert os.listdir(small_disk) == []


def test_file_size_limit_is_reported(run, vae_folder, ballasted, tmp_path):
    finished = convert(
        run,
        WFVAE_TOOL,
        ballasted,
        tmp_path / "x.safetensors",
        vae_folder / "config.json",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)),
    )
    assert rejected(finished, "x.safetensors", "cannot hold")
    assert os.listdir(tmp_path) == []


# Runs a tool, which exits, then prints its peak memory. (getrusage would include the parent process.)
WITH_PEAK = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory is measured through /proc")
def test_memory_is_bounded_for_a_large_file(run, tmp_path):
    """3.3 GB in tensors of 128 MB, one of them transposed: peak memory below twice a tensor plus 300 MB."""
    elements = np.arange(32 << 20, dtype=np.float32)
    state = as_tensors(WFVAEModel(**VAE).torch_state())
    state.update({f"ballast.{i}": tensor(elements) for i in range(25)})
    state["transposed"] = View(Storage(elements), (8192, 4096), strides=(1, 8192))
    save_zip(tmp_path / "big.ckpt", state)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "WFVAEModel", **VAE}))
    start = time.perf_counter()
    finished = convert(
        partial(run, "-c", WITH_PEAK),
        WFVAE_TOOL,
        tmp_path / "big.ckpt",
        tmp_path / "big.safetensors",
        tmp_path / "config.json",
    )
    seconds = time.perf_counter() - start
    assert finished.returncode == 0, finished.stderr
    peak = int(finished.stdout) * 1024
    print(f"{seconds:.1f} s, peak {peak / 1e6:.0f} MB")
    converted = open_state(tmp_path / "big.safetensors")
    assert (converted["ballast.24"].numpy() == elements).all()
    assert (converted["transposed"].numpy() == elements.reshape(4096, 8192).T).all()
    assert peak < 2 * elements.nbytes + 300e6


def test_merge_accepts_the_index_path(run, tmp_path):
    """-f may be the full path of the index; NaN in the shards is reported."""
    folder = tmp_path / "shards"
    weights = {"w": np.ones(3, np.float32), "v": np.full(2, np.nan, np.float32)}
    for name, value in weights.items():
        write_safetensors(folder / f"{name}.safetensors", {name: ArrayTensor(value)})
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: f"{name}.safetensors" for name in weights}}))
    for given in (index, index.name, os.path.relpath(index)):
        target = tmp_path / "all.safetensors"
        finished = run(MERGE_TOOL, "-i", folder, "-o", target, "-f", given)
        assert finished.returncode == 0, finished.stderr
        assert set(load_file(target)) == {"v", "w"}
        assert "all.safetensors: 1 tensors hold NaN or infinity (v)" in finished.stderr
        target.unlink()
    elsewhere = tmp_path / index.name
    elsewhere.write_text(index.read_text())
    finished = run(MERGE_TOOL, "-i", folder, "-o", target, "-f", tmp_path / "no" / index.name)
    assert rejected(finished, "no such index", str(folder))
    assert rejected(run(MERGE_TOOL, "-i", folder, "-o", target, "-f", elsewhere), "is not in", str(folder))


def test_deepspeed_checkpoint_is_converted(run, vae_folder, tmp_path):
    state = WFVAEModel.from_pretrained(vae_folder).torch_state()
    save_zip(
        tmp_path / "mp_rank_00_model_states.pt",
        {"module": {f"_orig_mod.{name}": value for name, value in as_tensors(state).items()}, "ds_version": "0.12"},
    )
    finished = convert(
        run, WFVAE_TOOL, tmp_path / "mp_rank_00_model_states.pt", tmp_path / "x.safetensors", vae_folder / "config.json"
    )
    assert finished.returncode == 0, finished.stderr
    assert same(load_file(tmp_path / "x.safetensors"), state)


def test_float8_is_kept_by_cast(run, tmp_path):
    """Float8 tensors are copied without conversion."""
    header = json.dumps({"w": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes([56, 0, 184, 126]))
    assert open_state(tmp_path / "x.safetensors")["w"].numpy().tolist() == [1, 0, -1, 448]
    finished = run("tools/ckpt/cast_safetensors.py", "-i", tmp_path / "x.safetensors", "-o", tmp_path / "y.safetensors")
    assert finished.returncode == 0, finished.stderr
    assert open_state(tmp_path / "y.safetensors")["w"].dtype == "F8_E4M3"
    assert open_state(tmp_path / "y.safetensors")["w"].numpy().tolist() == [1, 0, -1, 448]
