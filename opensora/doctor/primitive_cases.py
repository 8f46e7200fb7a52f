"""One or more cases of every public function of `opensora.ops`, with the reference of each.

Widths are multiples of 48, which FlashAttentionScore (16) and 3-D RoPE (6) need.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Callable, NamedTuple, Optional

import numpy as np
from mindspore import Tensor

from opensora.doctor import references as exact
from opensora.ops import activations, attention, conv, layout, linear, norms, resample, rope, updates

EPS = 1e-6
HEADS, WIDTH = 2, 48
GRID = (2, 3, 4)  # frames, height and width of RoPE
TOKENS = 24  # of GRID
PADDING = (1, 1, 1, 1)


class Input(NamedTuple):
    """A normally distributed input, or a given one.

    Attributes:
        single: it is float32 whatever the dtype of the case is, as statistics and modulation are.
        differentiable: whether a gradient flows to it.
        value: the input; None: normally distributed, with this scale.
    """

    shape: Sequence[int]
    single: bool = False
    differentiable: bool = True
    value: Optional[np.ndarray] = None
    scale: float = 1.0


@dataclass(frozen=True)
class Case:
    """A primitive with settings and inputs.

    Attributes:
        name: module.function, and the variant.
        run: inputs as tensors -> a tensor, or a sequence of them.
        reference: inputs as float64 arrays -> an array, or a sequence of them.
        fused: the operator of `backend.FUSED_OPERATORS` that Ascend may use.
        backward: whether it has a gradient.
        keeps_dtype: whether the output has the dtype of the case; otherwise it is float32.
        single: the primitive exists in float32 only.
    """

    name: str
    run: Callable[..., Any]
    reference: Callable[..., Any]
    inputs: Sequence[Input]
    fused: str = ""
    backward: bool = True
    keeps_dtype: bool = True
    single: bool = False


def given(*shape: int, scale: float = 1.0) -> Input:
    return Input(shape, scale=scale)


def single(*shape: int, scale: float = 1.0) -> Input:
    return Input(shape, single=True, scale=scale)


def fixed(value: np.ndarray) -> Input:
    return Input(value.shape, single=True, differentiable=False, value=value.astype(np.float32))


def cases() -> list[Case]:
    """All cases, in the order of the modules' names."""
    return [
        *activation_cases(),
        *attention_cases(),
        *conv_cases(),
        *layout_cases(),
        *linear_cases(),
        *norm_cases(),
        *resample_cases(),
        *rope_cases(),
        *update_cases(),
    ]


def activation_cases() -> list[Case]:
    x, bias = given(3, 5, WIDTH, scale=3), given(WIDTH)
    return [
        Case("activations.gelu_tanh", activations.gelu_tanh, exact.gelu_tanh, [x]),
        Case("activations.bias_gelu_tanh", activations.bias_gelu_tanh, lambda x, b: exact.gelu_tanh(x + b), [x, bias]),
    ]


def attention_cases() -> list[Case]:
    q, k = given(2, TOKENS, HEADS, WIDTH), given(2, 17, HEADS, WIDTH)
    mask = np.arange(17) < np.array([[17], [9]])
    bias = fixed(np.where(mask, 0.0, attention.MASK_VALUE)[:, None, None])
    scale = WIDTH**-0.5
    plain = lambda q, k, v: exact.attention(q, k, v, np.zeros(1), scale)  # noqa: E731
    masked = lambda q, k, v, bias: exact.attention(q, k, v, bias, scale)  # noqa: E731
    unscaled = lambda q, k, v, bias: exact.attention(q, k, v, bias, 1.0)  # noqa: E731
    position_bias = Input((1, HEADS, TOKENS, 17), single=True, differentiable=False)
    return [
        Case("attention.attention", attention.attention, plain, [q, k, k], "flash_attention"),
        Case("attention.attention masked", attention.attention, masked, [q, k, k, bias], "flash_attention"),
        Case(
            "attention.unscaled_attention",
            attention.unscaled_attention,
            unscaled,
            [given(2, TOKENS, HEADS, WIDTH, scale=0.3), k, k, position_bias],
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


def layout_cases() -> list[Case]:
    x = given(2, 5, 6, 3, 4)
    axes = (0, 3, 1, 4, 2)
    return [
        Case("layout.permute", lambda x: layout.permute(x, axes), lambda x: x.transpose(axes), [x]),
        Case("layout.swap_frames_channels", layout.swap_frames_channels, lambda x: x.swapaxes(1, 2), [x]),
        Case("layout.slice_axis", lambda x: layout.slice_axis(x, 2, 1, 4), lambda x: x[:, :, 1:4], [x]),
        Case("layout.split", lambda x: layout.split(x, 1, 2), lambda x: (x[:, :2], x[:, 2:]), [x]),
        Case(
            "layout.concat",
            lambda x, y: layout.concat(x, y, 2),
            lambda x, y: np.concatenate((x, y), 2),
            [x, given(2, 5, 3, 3, 4)],
        ),
        Case("layout.folded", lambda x: layout.folded(x, 2), lambda x: x.reshape(10, 6, 12), [x]),
    ]


def linear_cases() -> list[Case]:
    x, weight, bias = given(3, 11, WIDTH), given(80, WIDTH, scale=0.1), given(80)
    return [
        Case("linear.linear", linear.linear, lambda x, w, b: x @ w.T + b, [x, weight, bias]),
        Case("linear.linear without bias", linear.linear, lambda x, w: x @ w.T, [x, weight]),
    ]


def norm_cases() -> list[Case]:
    clip, weight, bias = given(2, 3, 32, 4, 5), single(32), single(32)
    rows, modulation = given(2, 7, WIDTH), single(2, 1, WIDTH)
    channels = lambda x, w, b: exact.channel_layer_norm(x, w, b, EPS)  # noqa: E731
    groups = lambda x, w, b: exact.group_norm(x, 8, w, b, EPS, False)  # noqa: E731
    return [
        Case(
            "norms.channel_layer_norm",
            lambda x, w, b: norms.channel_layer_norm(x, w, b, EPS),
            channels,
            [clip, weight, bias],
            "layer_norm",
        ),
        Case(
            "norms.channel_layer_norm silu",
            lambda x, w, b: norms.channel_layer_norm(x, w, b, EPS, silu=True),
            lambda x, w, b: exact.silu(channels(x, w, b)),
            [clip, weight, bias],
            "layer_norm",
        ),
        Case(
            "norms.group_norm silu",
            lambda x, w, b: norms.group_norm(x, 8, w, b, EPS, silu=True),
            lambda x, w, b: exact.silu(groups(x, w, b)),
            [clip, weight, bias],
            "group_norm",
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
            lambda x, shift, scale: norms.modulated_layer_norm(x, shift, scale, EPS),
            lambda x, shift, scale: exact.normalized(x, (-1,), EPS) * (1 + scale) + shift,
            [rows, modulation, modulation],
            "layer_norm",
        ),
        Case("norms.gated_residual", norms.gated_residual, lambda x, g, y: x + g * y, [rows, modulation, rows]),
        Case(
            "norms.rms_norm",
            lambda x, w: norms.rms_norm(x, w, EPS),
            lambda x, w: exact.normalized(x, (-1,), EPS, centered=False) * w,
            [rows, single(WIDTH)],
            "rms_norm",
        ),
    ]


def resample_cases() -> list[Case]:
    x = given(2, 3, 4, 5, 6)
    functions = resample.nearest_2x, resample.upsample_linear_2x
    found = []
    for function, reference in zip(functions, (exact.nearest_2x, exact.linear_2x)):
        found.append(
            Case(f"resample.{function.__name__}", lambda x, f=function: f(x, 1), lambda x, f=reference: f(x, 1), [x])
        )
    return [
        *found,
        Case(
            "resample.upsample_nearest_2x",
            resample.upsample_nearest_2x,
            lambda x: exact.nearest_2x(exact.nearest_2x(x, 3), 4),
            [x],
        ),
        Case(
            "resample.upsample_bilinear_2x",
            resample.upsample_bilinear_2x,
            lambda x: exact.linear_2x(exact.linear_2x(x, 3), 4),
            [x],
        ),
    ]


def rope_cases() -> list[Case]:
    angles, flat = exact.rope_angles(*GRID, WIDTH), exact.interleaved_angles(TOKENS, WIDTH)
    x, unit = given(2, TOKENS, HEADS, WIDTH), (1.0, 1.0, 1.0)

    def table(name: str, run: Callable[[], Any], values: np.ndarray) -> Case:
        return Case(f"rope.{name}", run, lambda: values, [], backward=False, keeps_dtype=False)

    return [
        table("inverse_frequencies", lambda: Tensor(rope.inverse_frequencies(WIDTH)), exact.inverse_frequencies(WIDTH)),
        table("rope_cos", lambda: rope.rope_cos(*GRID, WIDTH, unit), np.cos(angles)),
        table("rope_sin", lambda: rope.rope_sin(*GRID, WIDTH, unit), np.sin(angles)),
        table("interleaved_cos", lambda: rope.interleaved_cos(TOKENS, WIDTH), np.cos(flat)),
        table("interleaved_sin", lambda: rope.interleaved_sin(TOKENS, WIDTH), np.sin(flat)),
        Case("rope.apply_rope", rope.apply_rope, exact.rope, [x, *_cos_sin(angles)], "rope"),
        Case(
            "rope.apply_interleaved_rope",
            rope.apply_interleaved_rope,
            exact.interleaved_rope,
            [x, *_cos_sin(flat)],
            "rope",
        ),
    ]


def _cos_sin(angles: np.ndarray) -> list[Input]:
    return [fixed(np.cos(angles)), fixed(np.sin(angles))]


def update_cases() -> list[Case]:
    shapes, size = ((3, 5), (7,), (2, 2, 2)), 32
    tensors, flat = [given(*shape) for shape in shapes], given(size)
    settings = (0.01, 1e-3, 0.9, 0.99, 1e-8, 3)  # learning rate, decay, betas, epsilon, step
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])

    def flatten(*arrays: np.ndarray) -> np.ndarray:
        return np.concatenate([*(array.reshape(-1) for array in arrays), np.zeros(size - ends[-1])])

    def split(flat: np.ndarray, *arrays: np.ndarray) -> list[np.ndarray]:
        return [piece.reshape(shape) for piece, shape in zip(np.split(flat, ends), shapes)]

    def unflatten(flat: Tensor, *tensors: Tensor) -> Sequence[Tensor]:
        updates.unflatten(flat, tensors)
        return tensors

    def adamw(weights: Tensor, mean: Tensor, squares: Tensor, gradient: Tensor) -> Sequence[Tensor]:
        updates.adamw(weights, mean, squares, gradient, 0.5, *settings)
        return weights, mean, squares

    def lerp(shadow: Tensor, weights: Tensor) -> Tensor:
        updates.lerp_(shadow, weights, 0.25)
        return shadow

    def exact_adamw(weights: np.ndarray, mean: np.ndarray, squares: np.ndarray, gradient: np.ndarray):
        return exact.adamw(weights, mean, squares, 0.5 * gradient, *settings)

    squares = np.random.default_rng(0).standard_normal(size) ** 2
    moments = [single(size), single(size), fixed(squares), single(size)]
    return [
        Case(
            "updates.flatten",
            lambda *tensors: updates.flatten(tensors, size, tensors[0].dtype),
            flatten,
            tensors,
            backward=False,
        ),
        Case(
            "updates.split_like",
            lambda flat, *tensors: updates.split_like(flat, tensors),
            split,
            [flat, *tensors],
            backward=False,
        ),
        Case("updates.unflatten", unflatten, split, [flat, *tensors], backward=False),
        Case("updates.adamw", adamw, exact_adamw, moments, backward=False, single=True),
        Case(
            "updates.lerp_",
            lerp,
            lambda shadow, weights: 0.75 * shadow + 0.25 * weights,
            [single(size), single(size)],
            backward=False,
            single=True,
        ),
    ]
