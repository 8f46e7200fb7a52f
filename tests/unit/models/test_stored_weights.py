"""Models whose weights are held in 16 or 8 bits, loaded and streamed from files of every type."""

from __future__ import annotations

from functools import cache
from itertools import product
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from file_readers import write_stored
from golden_cases import relative_difference
from processes import slow
from safetensors.numpy import load_file
from stored_models import KINDS, STREAMABLE, drawn_state, exact_model, outputs, same, write_model

from opensora.checkpoint.files import open_state
from opensora.checkpoint.lazy_tensor import ScaledTensor
from opensora.checkpoint.quantized import may_be_q8_0
from opensora.config.memory import WEIGHTS
from opensora.models.common.layers import Linear, WeightLayer
from opensora.models.pretrained import PretrainedModel
from opensora.ops.cpu import custom_op

DTYPES = {"F32": ms.float32, "BF16": ms.bfloat16, "F16": ms.float16, "Q8_0": ms.int8}
HELD = {"fp32": "F32", "bf16": "BF16", "fp16": "F16", "q8_0": "Q8_0"}
OTHERS = [name for name in KINDS if name != "mt5"]
COMPUTE = {"fp32": ms.float32, "fp16": ms.float16, "bf16": ms.bfloat16}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """`files(name, dtype)`: a model's weights in a file of this type."""
    folder = tmp_path_factory.mktemp("models")

    @cache
    def file(name: str, dtype: str) -> Path:
        return write_model(folder / name / dtype, name, dtype)

    return file


def load(name: str, path: Path, dtype=ms.float32, **options) -> PretrainedModel:
    return KINDS[name].model.from_pretrained(path, dtype, **options)


def stored_types(path: Path) -> dict[str, str]:
    """The type of each tensor in a file, by the parameter's name."""
    types = {}
    for key, value in open_state(path).items():
        is_q8_0 = isinstance(value, ScaledTensor) and value.is_q8_0
        types[key] = types[f"module.{key}"] = "Q8_0" if is_q8_0 else value.dtype
    return types


def layers(model: PretrainedModel) -> dict[str, WeightLayer]:
    return {name: cell for name, cell in model.cells_and_names() if isinstance(cell, WeightLayer)}


def held_type(key: str, layer: WeightLayer, stored: str, wanted: str) -> str:
    """The type that a layer's weight should be held in, in a model that computes in float32."""
    if wanted != "Q8_0":
        return wanted
    is_int8 = isinstance(layer, Linear) and (stored == "Q8_0" or may_be_q8_0(key, layer.weight.shape))
    return "Q8_0" if is_int8 else stored


@pytest.mark.parametrize(
    "name, stored, weights",
    [
        *product(["mt5"], ["F32", "BF16", "F16", "Q8_0", "I8"], WEIGHTS),
        *product(OTHERS, ["BF16"], ["as_stored", "q8_0"]),
        ("dit", "Q8_0", "as_stored"),  # in a GGUF file
        ("opensora_v1_2", "Q8_0", "as_stored"),
        *(slow(*case) for case in product(OTHERS, ["BF16"], ["fp32", "bf16", "fp16"])),
        *(slow(*case) for case in product(OTHERS, ["F32", "F16", "I8"], ["as_stored"])),
    ],
)
def test_weights_are_held_as_wanted(name, stored, weights, files):
    """And the results are those of a float32 model with the widened values, whether they are streamed or not."""
    model = load(name, files(name, stored), weights=weights)
    types = stored_types(files(name, stored))
    single, held = model.float32_parameters(), set()
    for cell_name, layer in layers(model).items():
        key = f"{cell_name}.weight"
        own = held_type(key, layer, types[key], HELD.get(weights, types[key]))
        own = "F32" if key in single else own
        held.add(own)
        assert layer.weight.dtype == DTYPES[own] == dict(model.parameters_and_names())[key].dtype, key
        assert layer.compute_dtype == (None if own == "F32" else ms.float32) and layer.dtype() == ms.float32
        assert (layer.scale is not None) == (own == "Q8_0")
    wanted = {"I8": "Q8_0"}.get(stored, stored) if weights == "as_stored" else HELD[weights]
    assert wanted in held or (wanted == "Q8_0" and name in ("wfvae", "autoencoder_kl"))  # whose layers are convolutions
    stored_names = {f"{cell_name}.weight" for cell_name in layers(model)} - single
    others = [parameter.dtype for key, parameter in model.parameters_and_names() if key not in stored_names]
    assert set(others) == {ms.float32}

    found = outputs(name, model)
    for array, expected in zip(found, outputs(name, exact_model(name, model.torch_state()))):
        assert relative_difference(array, expected) < 1e-5
    if weights == "as_stored" and stored != "F32":
        for array, expected in zip(found, outputs(name, load(name, files(name, stored)))):
            assert relative_difference(array, expected) < 1e-5
    if name in STREAMABLE:
        assert same(outputs(name, load(name, files(name, stored), weights=weights, streamed=True)), found)


@pytest.mark.parametrize("compute", ["fp16", "bf16"])
@pytest.mark.parametrize(
    "name, weights",
    [
        ("mt5", "as_stored"),
        ("dit", "q8_0"),
        ("wfvae", "as_stored"),
        slow("mt5", "q8_0"),
        slow("dit", "as_stored"),
        *(slow("stdit2", weights) for weights in ("as_stored", "q8_0")),
    ],
)
def test_computing_in_16_bits(name, weights, compute, files):
    """A weight is not held in more bits than the dtype to compute in; norms and modulation stay float32."""
    path = files(name, "BF16")
    model = load(name, path, COMPUTE[compute], weights=weights)
    for cell_name, layer in layers(model).items():
        key = f"{cell_name}.weight"
        if key not in model.float32_parameters():
            is_int8 = weights == "q8_0" and isinstance(layer, Linear) and may_be_q8_0(key, layer.weight.shape)
            assert layer.weight.dtype == (ms.int8 if is_int8 else COMPUTE[compute])
            assert layer.dtype() == COMPUTE[compute]
    parameters = dict(model.parameters_and_names())
    assert {parameters[key].dtype for key in model.float32_parameters()} == {ms.float32}
    found, tolerance = outputs(name, model), {"fp16": 3e-3, "bf16": 3e-2}[compute]
    for array, expected in zip(found, outputs(name, load(name, path, weights=weights))):
        assert tolerance / 1000 < relative_difference(array, expected) < tolerance
    if weights == "as_stored":
        assert same(found, outputs(name, load(name, path, COMPUTE[compute])))
    if name in STREAMABLE:
        assert same(outputs(name, load(name, path, COMPUTE[compute], weights=weights, streamed=True)), found)


def values_of(state) -> dict[str, np.ndarray]:
    return {key: tensor.numpy().astype(np.float32) for key, tensor in state.items()}


def same_state(found, expected) -> bool:
    return found.keys() == expected.keys() and all(
        found[key].dtype == np.float32 and np.array_equal(found[key], expected[key]) for key in expected
    )


@pytest.mark.parametrize("streamed", [False, True], ids=["loaded", "streamed"])
@pytest.mark.parametrize("stored", ["F32", "BF16", "F16", "Q8_0", "I8"])
@pytest.mark.parametrize("name", ["mt5", "dit"])
def test_values_are_those_of_the_file(name, stored, streamed, files, tmp_path):
    """Those of `torch_state`, of a saved model, and of `values`; Q8_0 is not quantized anew."""
    path = files(name, stored)
    model = load(name, path, weights="as_stored", streamed=streamed)
    expected = values_of(open_state(path))
    state = model.torch_state()
    expected.update({alias: expected.get(alias, expected.get(key)) for alias, key in model.aliases.items()})
    expected.update({key: expected[alias] for alias, key in model.aliases.items()})
    assert same_state(state, expected)
    for key, _ in model.parameters_and_names():
        chunks = list(model.values(key))
        assert {chunk.dtype for chunk in chunks} == {np.dtype(np.float32)}
        assert np.array_equal(np.concatenate([chunk.reshape(-1) for chunk in chunks]), state[key].reshape(-1))
    found = outputs(name, model)
    assert same_state(model.torch_state(), expected)  # of tensors that operators have used
    model.save_pretrained(tmp_path / "saved")
    saved = load_file(tmp_path / "saved/diffusion_pytorch_model.safetensors")
    assert same_state(saved, {key: state[key] for key in saved}) and len(saved) >= len(list(model.get_parameters()))
    assert same(outputs(name, load(name, path, weights="as_stored")), found)


@pytest.mark.parametrize("compute", COMPUTE)
def test_values_are_float32_whatever_the_model_computes_in(compute, files):
    model = load("mt5", files("mt5", "F16"), COMPUTE[compute], weights="as_stored")
    streamed = load("mt5", files("mt5", "F16"), COMPUTE[compute], weights="as_stored", streamed=True)
    for key, _ in model.parameters_and_names():
        loaded, unloaded = (np.concatenate([x.reshape(-1) for x in m.values(key)]) for m in (model, streamed))
        assert loaded.dtype == unloaded.dtype == np.float32 and np.array_equal(loaded, unloaded)


def test_q8_0_numbers_are_held_as_stored(files):
    for path in (files("dit", "Q8_0"), files("dit", "I8")):
        model, state, count = load("dit", path, weights="as_stored"), open_state(path), 0
        for name, layer in layers(model).items():
            if layer.weight.dtype == ms.int8:
                q, scale = state[f"{name}.weight"].q8_0()
                assert np.array_equal(layer.weight.asnumpy(), q) and np.array_equal(layer.scale.asnumpy(), scale)
                count += 1
        assert count > 3 * 10
    assert np.abs(layers(model)["transformer_blocks.0.attn1.to_q"].weight.asnumpy()).max() == 40


def test_scaled_float8_is_held_in_bfloat16(tmp_path):
    tensors, random = {}, np.random.RandomState(0)
    state = drawn_state("dit")
    for key, value in state.items():
        if "transformer_blocks" in key and key.endswith(".weight"):
            tensors[key] = ("F8_E4M3", random.randint(0, 100, value.shape).astype(np.uint8))
            if "attn2" not in key:  # attn2: float8 without scales
                tensors[key.replace(".weight", ".scale_weight")] = ("F32", np.float32([0.01]))
        else:
            tensors[key] = ("F32", value)
    KINDS["dit"].model.without_weights(**KINDS["dit"].config).save_config(tmp_path)
    path = write_stored(tmp_path / "x.safetensors", tensors)
    model = load("dit", path, weights="as_stored")
    expected = values_of(open_state(path))
    for name, layer in layers(model).items():
        if "transformer_blocks" in name:
            assert layer.weight.dtype == ms.bfloat16 and layer.compute_dtype == ms.float32
            found, exact = layer.wide_weight().asnumpy(), expected[f"{name}.weight"]
            assert np.array_equal(found, exact) if "attn2" in name else relative_difference(found, exact) < 2**-8
    found = outputs("dit", model)
    assert same(outputs("dit", load("dit", path, weights="as_stored", streamed=True)), found)
    for array, exact in zip(found, outputs("dit", load("dit", path))):
        assert relative_difference(array, exact) < 1e-2


def differences(name: str, model: PretrainedModel, expected: list[np.ndarray]) -> float:
    return max(relative_difference(array, exact) for array, exact in zip(outputs(name, model), expected))


@pytest.mark.parametrize("has_kernels", [True, False], ids=["kernels", "stock"])
@pytest.mark.parametrize(
    "name, weights",
    [
        ("mt5", "q8_0"),
        *(
            slow(name, weights)
            for name, weights in product(KINDS, ["as_stored", "q8_0"])
            if (name, weights) != ("mt5", "q8_0")
        ),
    ],
)
def test_graph_mode(name, weights, has_kernels, files, monkeypatch):
    path = files(name, "BF16")
    expected = outputs(name, load(name, path, weights=weights))
    if not has_kernels:
        monkeypatch.setattr(custom_op, "library", lambda: None)
    ms.set_context(mode=ms.GRAPH_MODE)
    try:
        assert custom_op.available(ms.float32) == has_kernels
        assert differences(name, load(name, path, weights=weights), expected) < 1e-5
        assert differences(name, load(name, path, ms.float16, weights=weights), expected) < 5e-3
    finally:
        ms.set_context(mode=ms.PYNATIVE_MODE)


@pytest.mark.parametrize(
    "name, weights",
    [
        ("mt5", "q8_0"),
        ("mt5", "as_stored"),
        ("dit", "q8_0"),
        *(slow(name, weights) for name, weights in product(KINDS, ["as_stored", "q8_0"]) if name not in ("mt5", "dit")),
    ],
)
def test_stock_operators(name, weights, files, monkeypatch):
    path = files(name, "BF16")
    expected = outputs(name, load(name, path, weights=weights))
    monkeypatch.setattr(custom_op, "library", lambda: None)
    assert not custom_op.available(ms.float32)
    assert differences(name, load(name, path, weights=weights), expected) < 1e-5
    for dtype, tolerance in ((ms.float16, 5e-3), (ms.bfloat16, 3e-2)):
        assert differences(name, load(name, path, dtype, weights=weights), expected) < tolerance


def test_weights_can_be_replaced_by_those_of_another_format(files):
    """Of a loaded model; no scale or dtype of the old weights remains."""
    expected = outputs("dit", load("dit", files("dit", "F32")))
    for weights in ("q8_0", "bf16"):
        model = load("dit", files("dit", "F32"), weights=weights)
        model.load_torch_state(drawn_state("dit"))
        assert same(outputs("dit", model), expected)
