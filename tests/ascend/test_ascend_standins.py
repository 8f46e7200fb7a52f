"""The replacements of Ascend's operators compute the right values and gradients."""

from __future__ import annotations

from functools import partial
from typing import Callable

import mindspore as ms
import numpy as np
import pytest
from golden_cases import relative_difference
from mindspore import Tensor, nn, ops
from standins import Machine, install
from standins.machine import CHIPS, FIRST_GENERATION

from opensora.ops.backend import ascend_chip, on_ascend, on_cpu, uses_fused

EPS = 1e-6


def random(*shape, dtype=ms.float32, seed=0) -> Tensor:
    return Tensor(np.random.RandomState(seed).standard_normal(shape), ms.float32).astype(dtype)


def composed_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    q, k, v = (x.astype(ms.float32).swapaxes(1, 2) for x in (q, k, v))
    k, v = (ops.repeat_interleave(x, q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = ops.matmul(q, k.swapaxes(2, 3)) * scale
    scores = ops.where(mask.astype(ms.bool_), Tensor(-np.inf, ms.float32), scores)
    return ops.matmul(ops.softmax(scores, -1), v).swapaxes(1, 2)


def composed_norm(x: Tensor, axes: tuple, centers: bool) -> Tensor:
    x = x - x.mean(axes, keep_dims=True) if centers else x
    return x * ops.rsqrt((x * x).mean(axes, keep_dims=True) + EPS)


def composed_group_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    y = composed_norm(x.reshape(x.shape[0], 2, -1), (2,), True).reshape(x.shape)
    return y * weight.reshape(1, -1, 1, 1) + bias.reshape(1, -1, 1, 1)


def composed_rope(x: Tensor, cos: Tensor, sin: Tensor, mode: int) -> Tensor:
    if mode == 0:
        first, second = ops.chunk(x, 2, -1)
        rotated = ops.cat((-second, first), -1)
    else:
        rotated = ops.stack((-x[..., 1::2], x[..., ::2]), -1).reshape(x.shape)
    return x * cos + rotated * sin


MASK = Tensor(np.random.RandomState(7).uniform(size=(2, 1, 5, 6)) < 0.4, ms.uint8)
ANGLES = np.random.RandomState(8).uniform(0, 6, (1, 5, 1, 16)).astype(np.float32)
COS, SIN = Tensor(np.cos(ANGLES)), Tensor(np.sin(ANGLES))
# Name: (shapes of the inputs, Ascend's operator, the composition of elementary operators, dtype).
CASES: dict[str, tuple] = {
    "flash_attention_score": (
        ((2, 5, 4, 16), (2, 6, 4, 16), (2, 6, 4, 16)),
        lambda q, k, v: ops.flash_attention_score(q, k, v, 4, attn_mask=MASK, scalar_value=0.3, input_layout="BSND"),
        lambda q, k, v: composed_attention(q, k, v, MASK, 0.3),
        ms.float16,
    ),
    "flash_attention_score, shared keys": (
        ((2, 5, 4, 16), (2, 6, 2, 16), (2, 6, 2, 16)),
        lambda q, k, v: ops.flash_attention_score(q, k, v, 4, attn_mask=MASK, scalar_value=0.3, input_layout="BSND"),
        lambda q, k, v: composed_attention(q, k, v, MASK, 0.3),
        ms.float16,
    ),
    "layer_norm": (
        ((2, 3, 8), (8,), (8,)),
        lambda x, w, b: ops.layer_norm(x, (8,), w, b, EPS),
        lambda x, w, b: composed_norm(x, (-1,), True) * w + b,
        ms.float32,
    ),
    "layer_norm, two axes": (
        ((2, 3, 8), (3, 8), (3, 8)),
        lambda x, w, b: ops.layer_norm(x, (3, 8), w, b, EPS),
        lambda x, w, b: composed_norm(x, (-2, -1), True) * w + b,
        ms.float32,
    ),
    "rms_norm": (
        ((2, 3, 8), (8,)),
        lambda x, w: ops.rms_norm(x, w, EPS)[0],
        lambda x, w: composed_norm(x, (-1,), False) * w,
        ms.float32,
    ),
    "group_norm": (
        ((2, 4, 3, 5), (4,), (4,)),
        lambda x, w, b: ops.group_norm(x, 2, w, b, EPS),
        composed_group_norm,
        ms.float32,
    ),
    "rotary_position_embedding, halves": (
        ((2, 5, 4, 16),),
        lambda x: ops.rotary_position_embedding(x, COS, SIN, 0),
        lambda x: composed_rope(x, COS, SIN, 0),
        ms.float32,
    ),
    "rotary_position_embedding, interleaved": (
        ((2, 5, 4, 16),),
        lambda x: ops.rotary_position_embedding(x, COS, SIN, 1),
        lambda x: composed_rope(x, COS, SIN, 1),
        ms.float32,
    ),
}


def value_and_gradients(operator: Callable, inputs: list[Tensor]) -> list[np.ndarray]:
    """The output, and the gradients of its product with a weight."""
    value = operator(*inputs)
    weight = random(*value.shape, seed=9)
    loss = ms.grad(lambda *x: (operator(*x).astype(ms.float32) * weight).sum(), tuple(range(len(inputs))))
    gradients = loss(*inputs)
    gradients = gradients if isinstance(gradients, tuple) else (gradients,)
    assert all(gradient.dtype == x.dtype for gradient, x in zip(gradients, inputs))
    return [x.float().asnumpy() for x in (value, *gradients)]


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_equal_the_composition(name, ascend):
    shapes, fused, composed, dtype = CASES[name]
    inputs = [random(*shape, dtype=dtype, seed=seed) for seed, shape in enumerate(shapes)]
    expected = value_and_gradients(composed, [x.astype(ms.float32) for x in inputs])
    machine = ascend()
    found = value_and_gradients(fused, inputs)
    assert machine.calls == {f"ops.{name.split(',')[0]}"}
    for one, other in zip(found, expected):
        assert relative_difference(one, other) < (1e-5 if dtype == ms.float32 else 1e-3)


def test_rms_norm_also_returns_the_reciprocal(ascend):
    ascend()
    x = random(2, 3, 8)
    _, reciprocal = ops.rms_norm(x, Tensor(np.ones(8, np.float32)), EPS)
    assert np.allclose(reciprocal.asnumpy(), 1 / np.sqrt(np.square(x.asnumpy()).mean(-1, keepdims=True) + EPS))


def test_row_without_keys_is_finite(ascend):
    """It differs from the composition, so results that depend on such a row differ from the CPU's."""
    ascend()
    q, mask = random(1, 2, 1, 16, dtype=ms.float16), np.zeros((1, 1, 2, 2), np.uint8)
    mask[:, :, 1] = 1
    run = partial(ops.flash_attention_score, attn_mask=Tensor(mask), input_layout="BSND")
    assert not run(q, q, q, 1).asnumpy()[:, 1].any()
    gradient = ms.grad(lambda x: run(x, q, q, 1).sum())(q).asnumpy()
    assert not gradient[:, 1].any() and np.isfinite(gradient).all()


@pytest.mark.parametrize("chip", CHIPS)
def test_project_sees_the_machine(chip, ascend):
    assert on_cpu() and not on_ascend()
    ascend(chip)
    assert on_ascend() and not on_cpu() and ascend_chip() == chip
    assert uses_fused("rope") == (chip != FIRST_GENERATION)


def test_stock_operators_return(ascend):
    def operators() -> list:
        return [ops.rand, ops.Adam, ops.AllGather, Tensor.__add__, Tensor.__mul__, nn.Dropout.construct, ms.jit]

    stock = operators()
    with pytest.MonkeyPatch.context() as patch:
        install(patch, Machine())
        assert not any(one is other for one, other in zip(operators(), stock))
    assert operators() == stock and on_cpu()
