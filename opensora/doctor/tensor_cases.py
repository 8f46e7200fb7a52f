"""Cases of the primitives that move, resample and rotate tensors, and of the optimizer's updates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Callable

import numpy as np
from mindspore import Tensor

from opensora.doctor import references as exact
from opensora.doctor.primitive_cases import Case, Input, fixed, given, single
from opensora.ops import layout, resample, rope, updates

GRID, TOKENS = (2, 3, 4), 24  # frames, height and width, and their product
HEADS, WIDTH = 2, 48  # 3-D RoPE needs a width that is a multiple of 6


def tensor_cases() -> list[Case]:
    return [*layout_cases(), *resample_cases(), *rope_cases(), *update_cases()]


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
        Case(
            "layout.pad_end",
            lambda x: layout.pad_end(x, 2, 3),
            lambda x: np.pad(x, [(0, 3 * (axis == 2)) for axis in range(x.ndim)]),
            [x],
        ),
        Case("layout.unstack", layout.unstack, tuple, [x]),
        Case(
            "layout.select",
            lambda x, y, chosen: layout.select(x, y, chosen > 0),
            lambda x, y, chosen: np.where(chosen > 0, x, y),
            [x, x, fixed(np.arange(6)[:, None, None] % 2)],
        ),
        Case("layout.folded", lambda x: layout.folded(x, 2), lambda x: x.reshape(10, 6, 12), [x]),
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
        Case(
            "resample.double_later_frames",
            lambda x: resample.double_later_frames(x, resample.upsample_linear_2x),
            lambda x: np.concatenate((x[:, :1], exact.linear_2x(x[:, 1:], 1)), 1),
            [x],
        ),
        Case("resample.causal_windows", resample.causal_windows, exact.causal_windows, [x]),
        Case("resample.mean_of_windows", resample.mean_of_windows, lambda x: x.mean(1, keepdims=True), [x]),
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
