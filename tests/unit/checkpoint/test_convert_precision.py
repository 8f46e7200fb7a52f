"""`opensora convert --to`: large weights in 16 or 8 bits, as GGUF or safetensors."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import mindspore as ms
import numpy as np
import pytest
from file_readers import write_stored
from processes import ROOT
from tiny_models import DIT, TEXT, VAE, make_published_release
from torch_files import as_tensors, save_zip

from opensora.checkpoint.convert import PRECISIONS, SMALL_TENSOR, convert
from opensora.checkpoint.files import open_state, read_config
from opensora.checkpoint.formats.gguf import read_gguf, write_gguf
from opensora.checkpoint.formats.safetensors import read_safetensors, write_safetensors
from opensora.checkpoint.lazy_tensor import ArrayTensor, ConvertedTensor
from opensora.checkpoint.quantized import dequantize, pack_q8_0, quantize_q8_0
from opensora.checkpoint.shape_check import check_shapes
from opensora.config import commands
from opensora.models import MT5EncoderModel, OpenSoraT2V_v1_3
from opensora.models.common.layers import Linear

FORMATS = ("gguf", "safetensors")


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return make_published_release(tmp_path_factory.mktemp("release"))


SOURCES = {
    "t5": (MT5EncoderModel, "mt5-xxl", "pytorch_model.bin"),
    "dit": (OpenSoraT2V_v1_3, "any93x640x640", "diffusion_pytorch_model.safetensors.index.json"),
}


def converted(release, model: str, target, to: str, format=None) -> dict:
    """The state of a converted model, checked against its config."""
    _, folder, file = SOURCES[model]
    config = release / folder / "config.json"
    convert(release / folder / file, target, config, to=to, format=format)
    state = open_state(target)
    check_shapes(state, target, read_config(config), config)
    return state


def test_choices_of_the_command_are_those_of_the_code():
    assert tuple(PRECISIONS) == commands.PRECISIONS


def rounded(values: np.ndarray, to: str) -> np.ndarray:
    """What a reader sees of values stored with a precision."""
    if to == "q8_0":
        return dequantize(pack_q8_0(*quantize_q8_0(values)), "Q8_0")
    return ConvertedTensor(ArrayTensor(values), PRECISIONS[to].dtype).numpy().astype(np.float32)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("to", list(PRECISIONS))
@pytest.mark.parametrize("model", list(SOURCES))
def test_large_weights_are_rounded_and_others_are_kept(release, tmp_path, model, to, format):
    cls, folder, _ = SOURCES[model]
    expected = cls.from_pretrained(release / folder).torch_state()
    target = tmp_path / f"x.{format}"
    converted(release, model, target, to, format)
    loaded = cls.from_pretrained(target, config=cls.published_config(release / folder)).torch_state()
    changed = 0
    for name, value in expected.items():
        is_kept = value.ndim < 2 or value.size <= 1024 or "adaln_single" in name or "relative_attention_bias" in name
        is_kept = is_kept or to == "q8_0" and (value.ndim > 2 or value.shape[-1] % 32 or "proj_out" in name)
        assert (loaded[name] == (value if is_kept else rounded(value, to))).all(), name
        changed += bool((loaded[name] != value).any())
    assert changed >= 8 if to != "fp32" else not changed


def test_files_and_memory_have_the_same_layers_in_q8_0(release, tmp_path):
    for model, kept in (("t5", set()), ("dit", {"proj_out"})):
        cls, folder, _ = SOURCES[model]
        state = converted(release, model, tmp_path / "x.gguf", "q8_0")
        loaded = cls.from_pretrained(release / folder, weights="q8_0")
        layers = {
            name: cell.weight
            for name, cell in loaded.cells_and_names()
            if isinstance(cell, Linear) and "adaln_single" not in name and cell.weight.size > SMALL_TENSOR
        }
        in_file = {name for name in layers if state[f"{name}.weight"].dtype == "Q8_0"}
        assert {name for name, weight in layers.items() if weight.dtype == ms.int8} == in_file
        assert set(layers) - in_file == kept


def test_a_file_with_all_layers_in_q8_0_loads_unchanged(tmp_path):
    """Other tools quantize the last layer too; its numbers would be rounded a second time in 16 bits."""
    model = OpenSoraT2V_v1_3(**DIT)
    state = {name: ArrayTensor(value) for name, value in model.torch_state().items()}
    name = "proj_out.weight"
    state[name] = ConvertedTensor(state[name], "Q8_0")
    write_gguf(tmp_path / "x.gguf", state, {"general.architecture": "opensorat2v_v1_3"})
    for weights in ("as_stored", "q8_0"):
        loaded = OpenSoraT2V_v1_3.from_pretrained(tmp_path / "x.gguf", config=DIT, weights=weights)
        assert loaded.proj_out.weight.dtype == ms.int8
        assert (loaded.torch_state()[name] == state[name].numpy()).all()


def test_both_formats_hold_the_same_q8_0_numbers(release, tmp_path):
    for model in SOURCES:
        blocks = converted(release, model, tmp_path / "x.gguf", "q8_0")
        scaled = converted(release, model, tmp_path / "x.safetensors", "q8_0", "safetensors")
        names = [name for name, tensor in blocks.items() if tensor.dtype == "Q8_0"]
        assert len(names) >= 7
        for name in names:
            assert all((a == b).all() for a, b in zip(blocks[name].q8_0(), scaled[name].q8_0()))
        stored = read_safetensors(tmp_path / "x.safetensors")
        assert stored[names[0]].dtype == "I8" and stored[f"{names[0]}_scale"].dtype == "F16"
        # Converted again, from either format to the other, they stay the same numbers.
        config = release / SOURCES[model][1] / "config.json"
        convert(tmp_path / "x.safetensors", tmp_path / "again.gguf", config, to="q8_0")
        again = open_state(tmp_path / "again.gguf")
        for name in names:
            assert (again[name].elements() == blocks[name].elements()).all()


def test_gguf_of_t5_has_the_keys_of_llama_cpp(release, tmp_path):
    for to, number in (("q8_0", 7), ("fp16", 1), ("bf16", 32), ("fp32", 0)):
        state = converted(release, "t5", tmp_path / "x.gguf", to, "gguf")
        assert not any(name.startswith(("decoder.", "lm_head.", "encoder.embed_tokens.")) for name in state)
        assert read_gguf(tmp_path / "x.gguf")[1] == {
            "general.architecture": "t5encoder",
            "general.file_type": number,
            "general.quantization_version": 2,
            "general.alignment": 32,
            "t5encoder.vocab_size": TEXT["vocab_size"],
            "t5encoder.context_length": 512,
            "t5encoder.embedding_length": TEXT["d_model"],
            "t5encoder.feed_forward_length": TEXT["d_ff"],
            "t5encoder.block_count": TEXT["num_layers"],
            "t5encoder.attention.head_count": TEXT["num_heads"],
            "t5encoder.attention.key_length": TEXT["d_kv"],
            "t5encoder.attention.value_length": TEXT["d_kv"],
            "t5encoder.attention.relative_buckets_count": 32,
            "t5encoder.attention.layer_norm_rms_epsilon": float(np.float32(1e-6)),
        }
    converted(release, "dit", tmp_path / "dit.gguf", "q8_0")
    assert read_gguf(tmp_path / "dit.gguf")[1]["general.architecture"] == "opensorat2v_v1_3"


def test_tied_embedding_is_stored_once_in_gguf_and_twice_in_safetensors(release, tmp_path):
    state = as_tensors(MT5EncoderModel(**TEXT).torch_state())
    state["encoder.embed_tokens.weight"] = state["shared.weight"]
    save_zip(tmp_path / "x.bin", state)
    config = release / "mt5-xxl/config.json"
    for format, names in (
        ("gguf", {"shared.weight"}),
        ("safetensors", {"shared.weight", "encoder.embed_tokens.weight"}),
    ):
        convert(tmp_path / "x.bin", tmp_path / f"x.{format}", config, to="q8_0", format=format)
        state = open_state(tmp_path / f"x.{format}")
        assert {name for name in state if "embed" in name or "shared" in name} == names
        assert len({state[name].numpy().tobytes() for name in names}) == 1


def test_16_bit_tensors_that_are_not_quantized_keep_their_type(release, tmp_path):
    model = OpenSoraT2V_v1_3(**DIT).torch_state()
    tensors = {name: ConvertedTensor(ArrayTensor(value), "BF16") for name, value in model.items()}
    write_safetensors(tmp_path / "x.safetensors", tensors)
    config = release / "any93x640x640/config.json"
    convert(tmp_path / "x.safetensors", tmp_path / "x.gguf", config, to="q8_0")
    state = open_state(tmp_path / "x.gguf")
    assert state["pos_embed.proj.weight"].dtype == "BF16"
    assert state["transformer_blocks.0.ff.net.2.weight"].dtype == "Q8_0"
    assert state["transformer_blocks.0.ff.net.2.bias"].dtype == "F32"


def test_mindspore_checkpoint_is_quantized(run, release, tmp_path):
    model = MT5EncoderModel.from_pretrained(release / "mt5-xxl")
    ms.save_checkpoint([{"name": p.name, "data": p} for p in model.get_parameters()], str(tmp_path / "x.ckpt"))
    command = ("-m", "opensora.cli", "convert", "--config", release / "mt5-xxl/config.json", "--to", "q8_0")
    finished = run(*command, "--src", tmp_path / "x.ckpt", "--target", tmp_path / "x.gguf")
    assert finished.returncode == 0, finished.stderr
    assert "x.gguf: 0.000121 GB of weights became 5.72e-05 GB; tensors: 14 F32, 7 Q8_0" in finished.stdout
    expected = converted(release, "t5", tmp_path / "y.gguf", "q8_0")
    found = open_state(tmp_path / "x.gguf")
    assert set(found) == set(expected)
    assert all((found[name].elements() == expected[name].elements()).all() for name in expected)


def test_scaled_float8_is_converted(release, tmp_path):
    """Without --to the tensors and their scales are copied; with it the products are converted."""
    state = MT5EncoderModel(**TEXT).torch_state()
    name = "encoder.block.0.layer.1.DenseReluDense.wo"
    content = {key: ("F32", value) for key, value in state.items()}
    bits = np.random.default_rng(0).integers(0, 120, state[f"{name}.weight"].shape).astype(np.uint8)
    content[f"{name}.weight"] = ("F8_E4M3", bits)
    content[f"{name}.scale_weight"] = ("F32", np.float32([0.5]))
    write_stored(tmp_path / "x.safetensors", content)
    config = release / "mt5-xxl/config.json"
    convert(tmp_path / "x.safetensors", tmp_path / "copy.safetensors", config)
    assert read_safetensors(tmp_path / "copy.safetensors")[f"{name}.weight"].dtype == "F8_E4M3"
    products = open_state(tmp_path / "x.safetensors")[f"{name}.weight"].numpy()
    assert (open_state(tmp_path / "copy.safetensors")[f"{name}.weight"].numpy() == products).all()
    convert(tmp_path / "x.safetensors", tmp_path / "x.gguf", config, to="q8_0")
    assert (open_state(tmp_path / "x.gguf")[f"{name}.weight"].numpy() == rounded(products, "q8_0")).all()


def test_wrong_arguments_are_rejected(release, tmp_path):
    source, config = release / "mt5-xxl/pytorch_model.bin", release / "mt5-xxl/config.json"
    for target, options, message in (
        ("x.safetensors", {"to": "q8_0"}, "x.safetensors: the name of a gguf file must end in .gguf"),
        ("x.gguf", {"to": "bf16"}, "x.gguf: the name of a safetensors file must end in .safetensors"),
        ("x.gguf", {}, "x.gguf: the name of a safetensors file must end in .safetensors"),
        ("x.gguf", {"format": "gguf"}, "--format gguf needs --to, one of q8_0, bf16, fp16, fp32"),
    ):
        with pytest.raises(ValueError, match=message):
            convert(source, tmp_path / target, config, **options)
    with pytest.raises(ValueError, match="config.json: a GGUF file cannot hold a WFVAEModel; add --format safetensors"):
        convert(release / "vae/merged.ckpt", tmp_path / "x.gguf", release / "vae/config.json", to="q8_0")
    broken = tmp_path / "config.json"
    broken.write_text(json.dumps({"model_type": "mt5", **TEXT, "layer_norm_epsilon": "small"}))
    with pytest.raises(ValueError, match="config.json: layer_norm_epsilon 'small' should be a positive number like"):
        convert(source, tmp_path / "x.gguf", broken, to="q8_0")
    converted(release, "t5", tmp_path / "q.gguf", "q8_0")
    with pytest.raises(ValueError, match="is Q8_0, which safetensors does not have; convert --to bf16"):
        convert(tmp_path / "q.gguf", tmp_path / "x.safetensors", config)
    assert sorted(os.listdir(tmp_path)) == ["config.json", "q.gguf"]


def test_the_autoencoder_is_converted_to_16_bits(release, tmp_path):
    convert(release / "vae/merged.ckpt", tmp_path / "x.safetensors", release / "vae/config.json", to="bf16")
    state = open_state(tmp_path / "x.safetensors")
    assert state["decoder.conv_in.conv.weight"].dtype == "BF16" and state["decoder.conv_in.conv.bias"].dtype == "F32"
    assert VAE["base_channels"] == state["encoder.down1.0.weight"].shape[0]


MEASURE = """
import sys
from pathlib import Path
from opensora.checkpoint.convert import write_weights
from opensora.checkpoint.files import open_state
peak = lambda: int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))) * 1024
config = {"_class_name": "OpenSoraT2V_v1_3"}
state = open_state(sys.argv[1])
before = peak()
for to, format in (("q8_0", "gguf"), ("q8_0", "safetensors"), ("bf16", "gguf"), ("fp16", "safetensors")):
    write_weights(Path(sys.argv[1]).with_name(f"{to}.{format}"), state, config, "config.json", to, format)
print(peak() - before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory is measured through /proc")
def test_memory_is_bounded_for_a_large_tensor(tmp_path):
    """256 MB in one tensor, 25 MB for its conversion."""
    values = np.arange(64 << 20, dtype=np.float32).reshape(-1, 4096) % 1000
    write_safetensors(tmp_path / "x.safetensors", {"w": ArrayTensor(values)})
    command = [sys.executable, "-c", MEASURE, tmp_path / "x.safetensors"]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(finished.stdout.splitlines()[-1]) < 80e6
    assert (open_state(tmp_path / "fp16.safetensors")["w"].rows([5, 16000]) == values[[5, 16000]]).all()
    assert (open_state(tmp_path / "q8_0.gguf")["w"].rows([3]) == rounded(values[3], "q8_0")).all()
