"""Cases of the primitives of layers: activations, attention, convolutions, linear layers, norms."""

from __future__ import annotations

from typing import Any, Callable

import mindspore as ms
import numpy as np

from opensora.doctor import references as exact
from opensora.doctor.primitive_cases import Case, Input, fixed, given, single
from opensora.ops import activations, attention, conv, linear, norms

EPS = 1e-6
TOKENS, HEADS, WIDTH = 24, 2, 48  # FlashAttentionScore needs a width that is a multiple of 16
PADDING = (1, 1, 1, 1)


def layer_cases() -> list[Case]:
    return [*activation_cases(), *attention_cases(), *conv_cases(), *linear_cases(), *norm_cases()]


def activation_cases() -> list[Case]:
    x, bias = given(3, 5, WIDTH, scale=3), given(WIDTH)
    return [
        Case("activations.gelu_tanh", activations.gelu_tanh, exact.gelu_tanh, [x]),
        Case("activations.bias_gelu_tanh", activations.bias_gelu_tanh, lambda x, b: exact.gelu_tanh(x + b), [x, bias]),
        Case("activations.gelu", activations.gelu, exact.gelu, [x]),
        Case("activations.quick_gelu", activations.quick_gelu, lambda x: x / (1 + np.exp(-1.702 * x)), [x]),
        Case("activations.gated_gelu_tanh", activations.gated_gelu_tanh, lambda x, y: exact.gelu_tanh(x) * y, [x, x]),
    ]


def attention_cases() -> list[Case]:
    q, k = given(2, TOKENS, HEADS, WIDTH), given(2, 17, HEADS, WIDTH)
    mask = np.arange(17) < np.array([[17], [9]])
    scale = WIDTH**-0.5
    plain = lambda q, k, v: exact.attention(q, k, v, np.zeros(1), scale)  # noqa: E731
    masked = lambda q, k, v, bias: exact.attention(q, k, v, bias, scale)  # noqa: E731
    unscaled = lambda q, k, v, bias: exact.attention(q, k, v, bias, 1.0)  # noqa: E731
    position_bias = Input((1, HEADS, TOKENS, 17), single=True, differentiable=False)
    return [
        Case("attention.attention", attention.attention, plain, [q, k, k], "flash_attention"),
        Case(
            "attention.attention masked",
            lambda q, k, v, keys: attention.attention(q, k, v, attention.prepare_attention_mask(keys, TOKENS, q.dtype)),
            lambda q, k, v, keys: masked(q, k, v, (1 - keys)[:, None, None] * attention.MASK_VALUE),
            [q, k, k, fixed(mask)],
            "flash_attention",
        ),
        Case(
            "attention.self_attention",
            attention.self_attention,
            lambda qkv: plain(*np.split(qkv, 3)),
            [given(6, TOKENS, HEADS, WIDTH)],
            "flash_attention",
        ),
        Case(
            "attention.unscaled_attention",
            attention.unscaled_attention,
            unscaled,
            [given(2, TOKENS, HEADS, WIDTH, scale=0.3), k, k, position_bias],
        ),
        Case(
            "attention.causal_attention",
            attention.causal_attention,
            lambda q, k, v: masked(q, k, v, np.triu(np.full((TOKENS, TOKENS), attention.MASK_VALUE), 1)),
            [q, q, q],
        ),
        Case(
            "attention.mask_to_bias",
            attention.mask_to_bias,
            lambda mask: (1 - mask)[:, None, None] * attention.MASK_VALUE,
            [fixed(mask)],
            backward=False,
            keeps_dtype=False,
        ),
    ]


def conv_cases() -> list[Case]:
    x, bias = given(2, 4, 16, 7, 8), given(20)
    weight, flat_weight = given(20, 16, 3, 3, 3, scale=0.05), given(20, 16, 3, 3, scale=0.1)

    def case(name: str, run: Callable, reference: Callable, *inputs: Input) -> Case:
        return Case(f"conv.{name}", run, reference, inputs)

    def both(name: str, kernel: Callable, reference: Callable, weight: Input, *settings: Any) -> Case:
        return case(
            name,
            lambda *tensors: kernel(*tensors, *settings),
            lambda *arrays: reference(*arrays, *settings),
            x,
            weight,
            bias,
        )

    return [
        both("conv2d", conv.conv2d, exact.conv2d, flat_weight, 1, PADDING),
        both("conv2d stride 2", conv.conv2d, exact.conv2d, flat_weight, 2, (0, 1, 0, 1)),
        both("conv3d", conv.conv3d, exact.conv3d, weight, 1, PADDING),
        both("conv3d stride 2", conv.conv3d, exact.conv3d, weight, 2, PADDING),
        case(
            "conv3d cached",
            lambda x, weight, bias, cache: conv.conv3d(x, weight, bias, 1, PADDING, cache),
            lambda x, weight, bias, cache: exact.conv3d(x, weight, bias, 1, PADDING, cache),
            *(x, weight, bias, given(2, 2, 16, 7, 8)),
        ),
        case(
            "conv3d replicated",
            lambda x, weight, bias: conv.conv3d(x, weight, bias, 1, PADDING, replicate_pad=2),
            lambda x, weight, bias: exact.conv3d(x, weight, bias, 1, PADDING, x[:, [0, 0]]),
            *(x, weight, bias),
        ),
    ]


def linear_cases() -> list[Case]:
    x, weight, bias = given(3, 11, WIDTH), given(80, WIDTH, scale=0.1), given(80)
    numbers = np.random.default_rng(0).integers(-128, 128, (80, 2 * linear.GROUP))
    half, int8 = fixed(numbers / 1024), fixed(numbers)  # exact in 16 bits
    scale = fixed(np.random.default_rng(1).choice([2**-10, 2**-9, 3 * 2**-9], (80, 2)))
    wide = lambda q, scale: q * scale.repeat(linear.GROUP, 1)  # noqa: E731
    # Of layers with stored weights, the input alone gets a gradient.
    grouped, offsets = given(3, 11, 2 * linear.GROUP), fixed(np.linspace(-1, 1, 80))
    return [
        Case("linear.linear", linear.linear, lambda x, w, b: x @ w.T + b, [x, weight, bias]),
        Case("linear.linear without bias", linear.linear, lambda x, w: x @ w.T, [x, weight]),
        Case(
            "linear.linear frozen",
            lambda x, w, b: linear.linear(x, w.astype(x.dtype), b.astype(x.dtype), frozen=True),
            lambda x, w, b: x @ w.T + b,
            [grouped, half, offsets],
        ),
        Case(
            "linear.add_low_rank",
            lambda y, x, a, b: linear.add_low_rank(y, x, a, b, 0.5),
            lambda y, x, a, b: y + 0.5 * (x @ a.T) @ b.T,
            [given(3, 11, 80), x, given(4, WIDTH, scale=0.1), given(80, 4, scale=0.5)],
        ),
        Case(
            "linear.stacked_linear",
            lambda x, a, b, c, bias: linear.stacked_linear(x, a, bias, b, bias, c, bias),
            lambda x, a, b, c, bias: np.concatenate([x @ w.T + bias for w in (a, b, c)]),
            [x, weight, given(80, WIDTH, scale=0.2), given(80, WIDTH, scale=0.3), bias],
        ),
        Case(
            "linear.stored_linear",
            lambda x, w, b: linear.stored_linear(x, w.astype(ms.float16), None, b),
            lambda x, w, b: x @ w.T + b,
            [grouped, half, offsets],
        ),
        Case(
            "linear.stored_linear int8",
            lambda x, q, scale, b: linear.stored_linear(x, q.astype(ms.int8), scale.astype(ms.float16), b),
            lambda x, q, scale, b: x @ wide(q, scale).T + b,
            [grouped, int8, scale, offsets],
        ),
        Case(
            "linear.widened_weight",
            lambda q, scale: linear.widened_weight(q.astype(ms.int8), scale.astype(ms.float16), ms.float32),
            wide,
            [int8, scale],
            backward=False,
            keeps_dtype=False,
        ),
        Case(
            "linear.rows_at",
            lambda table, rows: linear.rows_at(table, rows.astype(ms.int32)),
            lambda table, rows: table[rows.astype(int)],
            [given(9, WIDTH), fixed(np.array([[8, 0, 3], [3, 3, 1]]))],
        ),
    ]


def norm_cases() -> list[Case]:
    clip, weight, bias = given(2, 3, 32, 4, 5), single(32), single(32)
    rows, modulation = given(2, 7, WIDTH), single(2, 3, WIDTH)
    channels = lambda x, w, b: exact.channel_layer_norm(x, w, b, EPS)  # noqa: E731
    groups = lambda x, w, b: exact.group_norm(x, 8, w, b, EPS, False)  # noqa: E731
    return [
        Case(
            "norms.channel_layer_norm",
            lambda x, w, b: norms.channel_layer_norm(x, w, b, EPS),
            channels,
            [clip, weight, bias],
        ),
        Case(
            "norms.channel_layer_norm silu",
            lambda x, w, b: norms.channel_layer_norm(x, w, b, EPS, silu=True),
            lambda x, w, b: exact.silu(channels(x, w, b)),
            [clip, weight, bias],
        ),
        Case(
            "norms.group_norm silu",
            lambda x, w, b: norms.group_norm(x, 8, w, b, EPS, silu=True),
            lambda x, w, b: exact.silu(groups(x, w, b)),
            [clip, weight, bias],
        ),
        Case(
            "norms.group_norm per frame",
            lambda x, w, b: norms.group_norm(x, 8, w, b, EPS, per_frame=True),
            lambda x, w, b: exact.group_norm(x, 8, w, b, EPS, True),
            [clip, weight, bias],
            "group_norm",
        ),
        Case(
            "norms.modulated_layer_norm",
            lambda x, m: norms.modulated_layer_norm(x, m, 1, EPS),
            lambda x, m: exact.normalized(x, (-1,), EPS) * (1 + m[:, 2:3]) + m[:, 1:2],
            [rows, modulation],
            "layer_norm",
        ),
        Case(
            "norms.gated_residual",
            lambda x, m, y: norms.gated_residual(x, m, 2, y),
            lambda x, m, y: x + m[:, 2:3] * y,
            [rows, modulation, rows],
        ),
        Case(
            "norms.rms_norm",
            lambda x, w: norms.rms_norm(x, w, EPS),
            lambda x, w: exact.normalized(x, (-1,), EPS, centered=False) * w,
            [rows, single(WIDTH)],
            "rms_norm",
        ),
    ]
