"""Adapters of linear layers: their output, their gradients, and the choice of layers."""

from __future__ import annotations

from typing import Optional

import mindspore as ms
import numpy as np
import pytest
from golden_cases import relative_difference
from mindspore import Tensor, nn, ops
from tiny_models import DIT

from opensora.checkpoint.lazy_tensor import ArrayTensor
from opensora.checkpoint.lora.files import LowRank
from opensora.models import OpenSoraT2V_v1_3, STDiT2
from opensora.models.common.layers import Linear, LinearGELU
from opensora.models.lora import (
    LoadedLoRA,
    LoRAs,
    add_trainable,
    initial_adapters,
    linear_layers,
    linear_shapes,
    select_layers,
)
from opensora.models.stored_weights import WeightLoader
from opensora.ops.linear import widened_weight

RNG = np.random.default_rng(5)


def drawn(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def adapter(outputs: int, inputs: int, rank: int = 3, factor: float = 0.5) -> LowRank:
    return LowRank(drawn(rank, inputs) / 4, drawn(outputs, rank) / 4, factor)


class Layers(nn.Cell):
    """Two linear layers, of which the first may be held in fewer bits."""

    def __init__(self, kind: type = Linear):
        super().__init__()
        self.first = kind(64, 96)
        self.second = Linear(96, 32)

    def construct(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


@pytest.mark.parametrize("kind", [Linear, LinearGELU])
def test_adapted_layer_equals_the_fused_one(kind, mode):
    layers, x = Layers(kind), Tensor(drawn(2, 7, 64))
    plain = layers(x).asnumpy()
    found = {name: adapter(*shape) for name, shape in linear_shapes(layers).items()}
    for name, layer in linear_layers(layers).items():
        layer.weight.set_data(Tensor(layer.weight.asnumpy() + found[name].delta()))
    fused = layers(x).asnumpy()
    for name, layer in linear_layers(layers).items():
        layer.weight.set_data(Tensor(layer.weight.asnumpy() - found[name].delta()))
    add_trainable(layers, found)
    layers.compile_cache.clear()
    assert relative_difference(layers(x).asnumpy(), fused) < 1e-6
    assert relative_difference(fused, plain) > 0.01


class Product(nn.Cell):
    """The scalar product of a model's output with fixed numbers."""

    def __init__(self, model: nn.Cell, dy: np.ndarray):
        super().__init__(auto_prefix=False)
        self.model, self.dy = model, Tensor(dy)

    def construct(self, x: Tensor) -> Tensor:
        return (self.model(x).astype(ms.float32) * self.dy).sum()


def held_in(held: Optional[str], dtype) -> Layers:
    """Layers that compute in `dtype`, with weights that are held in another format."""
    layers, rng = Layers(), np.random.default_rng(2)
    loader = WeightLoader(layers, dtype, set(), held)
    for name, parameter in loader.parameters.items():
        values = rng.standard_normal(parameter.shape).astype(np.float32) / 8
        loader.load(name, ArrayTensor(values), may_map=False)
    return layers


def widened(layers: Layers) -> Layers:
    """Layers of the same numbers in float32."""
    plain = Layers()
    for name, layer in linear_layers(layers).items():
        same = linear_layers(plain)[name]
        same.weight.set_data(widened_weight(layer.weight, layer.scale, ms.float32))
        same.bias.set_data(layer.bias.astype(ms.float32))
    return plain


@pytest.mark.parametrize("held", [None, "bf16", "fp16", "q8_0"])
@pytest.mark.parametrize("dtype", [ms.float32, ms.float16, ms.bfloat16])
def test_gradients_through_frozen_weights(held, dtype, mode):
    """Adapters and input get the gradients that they get through trainable float32 weights of the same values."""
    if mode == ms.GRAPH_MODE and dtype == ms.bfloat16:
        pytest.skip("a CPU computes bfloat16 in PyNative mode only")
    adapters = {name: adapter(*shape) for name, shape in linear_shapes(Layers()).items()}
    x, dy = drawn(2, 7, 64), drawn(2, 7, 32)
    frozen = held_in(held, dtype)
    plain = widened(frozen)
    results = []
    for layers, kind in ((frozen, dtype), (plain, ms.float32)):
        add_trainable(layers, adapters)
        for layer in linear_layers(plain).values():
            layer.frozen = False
        trained = layers.trainable_params()
        assert len(trained) == 4
        _, (dx, gradients) = ms.value_and_grad(Product(layers, dy), 0, trained)(Tensor(x).astype(kind))
        results.append([gradient.astype(ms.float32).asnumpy() for gradient in (dx, *gradients)])
    for mine, expected in zip(*results):
        assert relative_difference(mine, expected) < (1e-6 if dtype == ms.float32 else 2e-2)


def test_layers_are_selected_as_in_peft():
    names = list(linear_shapes(OpenSoraT2V_v1_3.without_weights(**DIT)))
    default = select_layers(names, OpenSoraT2V_v1_3.lora_targets)
    assert len(default) == 8 * DIT["num_layers"] and all(".attn" in name for name in default)
    assert select_layers(names, ["proj_out"]) == ["proj_out"]
    assert select_layers(names, ["attn1.to_q"]) == [
        f"transformer_blocks.{i}.attn1.to_q" for i in range(DIT["num_layers"])
    ]
    assert select_layers(names, [r"transformer_blocks\.1\..*(to_k|net\.2)"]) == [
        f"transformer_blocks.1.{end}" for end in ("attn1.to_k", "attn2.to_k", "ff.net.2")
    ]
    with pytest.raises(ValueError, match="no such linear layer .did you mean attn1.to_[kqv].*it has .*ff.net.0.proj"):
        select_layers(names, ["to_q", "attn1.to_p"])
    with pytest.raises(ValueError, match="matches none of the linear layers"):
        select_layers(names, ["blocks.*to_p"])
    with pytest.raises(ValueError, match="not a regular expression"):
        select_layers(names, ["blocks.*(to_p"])


def test_default_layers_of_stdit_are_those_of_attention():
    model = STDiT2.without_weights(depth=2, hidden_size=48, num_heads=4, caption_channels=32, model_max_length=24)
    chosen = select_layers(linear_shapes(model), STDiT2.lora_targets)
    ends = {".".join(name.split(".")[2:]) for name in chosen}
    assert ends == {
        *(f"{attention}.{layer}" for attention in ("attn", "attn_temp") for layer in ("qkv", "proj")),
        *(f"cross_attn.{layer}" for layer in ("q_linear", "kv_linear", "proj")),
    }


def test_new_adapters_change_nothing_and_depend_on_the_seed_alone():
    shapes = {"a": (8, 4), "b": (6, 100)}
    first, again, other = (initial_adapters(shapes, 2, 4.0, seed) for seed in (1, 1, 2))
    assert all((first[name].a == again[name].a).all() and (first[name].a != other[name].a).any() for name in shapes)
    assert all(not lora.b.any() and lora.factor == 2 for lora in first.values())
    assert abs(first["b"].a).max() <= 0.1 and abs(first["b"].a).max() > 0.09


def test_loaded_loras_add_up_and_own_parameters_exclude_them():
    model = OpenSoraT2V_v1_3(**DIT)
    names, shapes = select_layers(linear_shapes(model), ["to_q"]), linear_shapes(model)
    one, two = ({name: adapter(*shapes[name], rank) for name in names} for rank in (2, 3))
    before = model.torch_state()
    loras = LoRAs({"one": LoadedLoRA(one, 0.5), "two": LoadedLoRA(two, -2.0)})
    loras.apply(model)
    layer = linear_layers(model)[names[0]].lora
    expected = 0.5 * one[names[0]].delta() - 2 * two[names[0]].delta()
    assert relative_difference(ops.matmul(layer.B, layer.A).asnumpy(), expected) < 1e-6
    assert before.keys() == model.torch_state().keys()
    loras.loaded["two"].scale = 0.0
    loras.apply_scales(model)
    assert relative_difference(ops.matmul(layer.B, layer.A).asnumpy(), 0.5 * one[names[0]].delta()) < 1e-6
    loras.loaded.clear()
    loras.apply(model)
    assert all(layer.lora is None for layer in linear_layers(model).values())


def test_dropout_needs_pynative_mode():
    ms.set_context(mode=ms.GRAPH_MODE)
    try:
        with pytest.raises(ValueError, match="--lora_dropout 0.1 needs PyNative mode"):
            add_trainable(Layers(), {"first": adapter(96, 64)}, 0.1)
    finally:
        ms.set_context(mode=ms.PYNATIVE_MODE)


def test_dropout_masks_depend_on_the_seed_of_the_pass():
    layers = Layers()
    seed = add_trainable(layers, {"first": adapter(96, 64)}, 0.5)
    x = Tensor(drawn(2, 64))
    outputs = []
    for value in ((1, 2), (1, 2), (1, 3), None, None):
        seed.value = value
        outputs.append(layers(x).asnumpy())
    assert (outputs[0] == outputs[1]).all() and (outputs[0] != outputs[2]).any()
    assert (outputs[3] == outputs[4]).all() and (outputs[0] != outputs[3]).any()
