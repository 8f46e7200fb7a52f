"""Random calls of the C++ kernels with expected results, from naive float64 references."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Callable

import numpy as np
from kernel_calls import Call, Draw, doubles


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def silu(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The value and the derivative."""
    s = sigmoid(x)
    return x * s, s * (1 + x * (1 - s))


def normalized(x: np.ndarray, axes: tuple, epsilon: float, centered: bool = True) -> tuple:
    """x / rms(x), the function that maps its gradient to that of x, and the factor that magnifies rounding errors."""
    y = x - x.mean(axes, keepdims=True) if centered else x
    inverse = 1 / np.sqrt((y * y).mean(axes, keepdims=True) + epsilon)
    y = y * inverse

    def back(dy: np.ndarray) -> np.ndarray:
        dx = dy - y * (dy * y).mean(axes, keepdims=True)
        return (dx - dy.mean(axes, keepdims=True) if centered else dx) * inverse

    return y, back, np.broadcast_to(inverse, x.shape)


# Each function yields the calls of one operator: forward, then gradients.


def modulated_layer_norm(draw: Draw) -> Iterator[Call]:
    b, s, d, epsilon, vectors = draw.size(3), draw.size(), draw.size(40), draw.epsilon(), draw.size(6, 2)
    x, modulation, dy, first = (
        draw.normal(b, s, d),
        draw.normal(b, vectors, d),
        draw.normal(b, s, d),
        draw.size(vectors - 1) - 1,
    )
    x64, modulation64, dy64 = doubles(x, modulation, dy)
    shift, scale = modulation64[:, first : first + 1], modulation64[:, first + 1 : first + 2]
    y, back, magnitude = normalized(x64, (2,), epsilon)
    dmodulation = np.zeros_like(modulation64)
    dmodulation[:, first], dmodulation[:, first + 1] = dy64.sum(1), (dy64 * y).sum(1)
    yield Call(
        "modulated_layer_norm", [x, modulation, [epsilon, first]], [y * (1 + scale) + shift], magnitude=magnitude
    )
    # The largest magnifies the errors of the modulation's gradient, a sum over tokens.
    yield Call(
        "modulated_layer_norm_grad",
        [x, modulation, [epsilon, first], dy],
        [back(dy64 * (1 + scale)), dmodulation],
        magnitude=magnitude.max(),
    )


def rms_norm(draw: Draw) -> Iterator[Call]:
    shape, epsilon = [draw.size() for _ in range(draw.size(3))] + [draw.size(40)], draw.epsilon()
    x, weight, dy = draw.normal(*shape), draw.normal(shape[-1]), draw.normal(*shape)
    x64, weight64, dy64 = doubles(x, weight, dy)
    y, back, magnitude = normalized(x64, (-1,), epsilon, centered=False)
    rows = tuple(range(len(shape) - 1))
    yield Call("rms_norm", [x, weight, [epsilon]], [y * weight64], magnitude=magnitude)
    yield Call(
        "rms_norm_grad", [x, weight, [epsilon], dy], [back(dy64 * weight64), (dy64 * y).sum(rows)], magnitude=magnitude
    )


def channel_layer_norm(draw: Draw) -> Iterator[Call]:
    shape = [draw.size(3) for _ in range(draw.size(2, 0))] + [draw.size(40), draw.size(13), draw.size(13)]
    yield from video_norm(draw, "channel_layer_norm", shape, shape[-3], [draw.epsilon()], lambda x: x, (-3,))


def group_norm(draw: Draw) -> Iterator[Call]:
    groups, per_frame = draw.size(8), draw.choice(False, True)
    b, t, c, h, w = shape = draw.size(3), draw.size(), groups * draw.size(5), draw.size(), draw.size()
    yield from video_norm(
        draw,
        "group_norm",
        shape,
        c,
        [groups, draw.epsilon(), per_frame],
        lambda x: x.reshape(b, t, groups, c // groups, h, w),
        (3, 4, 5) if per_frame else (1, 3, 4, 5),
    )


def video_norm(
    draw: Draw, name: str, shape: Sequence[int], channels: int, settings: list, grouped: Callable, axes: tuple
) -> Iterator[Call]:
    x, weight, bias, dy = draw.normal(*shape), draw.normal(channels), draw.normal(channels), draw.normal(*shape)
    x64, dy64 = doubles(x, dy)
    weight64, bias64 = [v.reshape(-1, 1, 1) for v in doubles(weight, bias)]
    y, back, magnitude = normalized(grouped(x64), axes, settings[1] if len(settings) > 1 else settings[0])
    y = y.reshape(x.shape)
    others = tuple(axis for axis in range(len(shape)) if axis != len(shape) - 3)
    for suffix, activation in (("", lambda z: (z, np.ones_like(z))), ("_silu", silu)):
        value, slope = activation(y * weight64 + bias64)
        inner = dy64 * slope
        yield Call(
            name + suffix,
            [x, weight, bias, settings],
            [value],
            settings=str(settings),
            magnitude=magnitude.reshape(x.shape),
        )
        yield Call(
            f"{name}{suffix}_grad",
            [x, weight, bias, settings, dy],
            [back(grouped(inner * weight64)).reshape(x.shape), (inner * y).sum(others), inner.sum(others)],
            settings=str(settings),
            magnitude=magnitude.reshape(x.shape),
        )


def bias_gelu(draw: Draw) -> Iterator[Call]:
    shape = [draw.size() for _ in range(draw.size(3))] + [draw.size(40)]
    x, bias, dy = draw.normal(*shape) * 3, draw.normal(shape[-1]), draw.normal(*shape)
    z = x.astype(np.float64) + bias
    c = np.sqrt(2 / np.pi)
    tanh = np.tanh(c * (z + 0.044715 * z**3))
    slope = 0.5 * (1 + tanh) + 0.5 * z * (1 - tanh**2) * c * (1 + 3 * 0.044715 * z**2)
    dx = dy * slope
    yield Call("bias_gelu", [x, bias], [0.5 * z * (1 + tanh)])
    yield Call("bias_gelu_grad", [x, bias, dy], [dx, dx.sum(tuple(range(len(shape) - 1)))])


def gated_residual(draw: Draw) -> Iterator[Call]:
    b, t, s, d, vectors = draw.size(3), draw.size(3), draw.size(), draw.size(40), draw.size(6)
    x, modulation, index = draw.normal(b, t, s, d), draw.normal(b, t, vectors, d), draw.size(vectors) - 1
    y, dz = draw.normal(b, t, s, d), draw.normal(b, t, s, d)
    x64, modulation64, y64, dz64 = doubles(x, modulation, y, dz)
    gate, dmodulation = modulation64[:, :, index : index + 1], np.zeros_like(modulation64)
    dmodulation[:, :, index] = (dz64 * y64).sum(2)
    yield Call("gated_residual", [x, modulation, [index], y], [x64 + gate * y64])
    yield Call("gated_residual_grad", [modulation, [index], y, dz], [dmodulation, dz64 * gate])


def rope(draw: Draw) -> Iterator[Call]:
    b, s, n, sixth = draw.size(3), draw.size(), draw.size(4), draw.size(7)
    x, angles, direction = draw.normal(b, s, n, 6 * sixth), draw.normal(s, 1, 3, sixth) * 3, draw.choice(1, -1)
    cos, sin = np.cos(angles), np.sin(angles)
    first, second = np.moveaxis(x.astype(np.float64).reshape(b, s, n, 3, 2, sixth), 4, 0)
    y = np.stack((first * cos - direction * second * sin, second * cos + direction * first * sin), 4).reshape(x.shape)
    rows = draw.size(b, 0)
    yield Call("rope", [x, cos, sin, [direction, rows], [-direction, rows]], [np.concatenate((y[:rows], x[rows:]))])


def attention(draw: Draw) -> Iterator[Call]:
    b, n, d = draw.size(3), draw.size(4), draw.size(40)
    s, l = (  # noqa: E741
        draw.choice(draw.size(), draw.size(), draw.size(140, 120)),
        draw.choice(draw.size(), draw.size(), draw.size(530, 500)),
    )
    yield from attention_calls(draw, b, s, l, n, d)


def attention_of_few_heads(draw: Draw) -> Iterator[Call]:
    """So few that the gradient divides the queries of a head among threads."""
    yield from attention_calls(draw, draw.size(2), draw.size(700, 200), draw.size(530), draw.size(2), draw.size(20))


def attention_calls(draw: Draw, b: int, s: int, l: int, n: int, d: int) -> Iterator[Call]:  # noqa: E741
    q, k, v, dy = draw.normal(b, s, n, d), draw.normal(b, l, n, d), draw.normal(b, l, n, d), draw.normal(b, s, n, d)
    bias = draw.normal(*[draw.choice(1, size) for size in (b, n, s, l)]) * draw.choice(0, 1, 5)
    if bias.shape[3] > 1:
        bias[..., 1 + draw.size(l - 1, 0) :] = draw.choice(0, -1e4, -1e9, -np.inf)
    scale = float(np.float32(draw.choice(0.3, d**-0.5)))
    q64, k64, v64, dy64, bias64 = doubles(q, k, v, dy, bias)
    scores = np.einsum("bsnd,blnd->bnsl", q64, k64) * scale + bias64
    most = scores.max(-1, keepdims=True)
    weights = np.exp(scores - most)
    total = weights.sum(-1, keepdims=True)
    weights /= total
    logarithms = (most + np.log(total))[..., 0]
    y = np.einsum("bnsl,blnd->bsnd", weights, v64)
    slopes = np.einsum("bsnd,blnd->bnsl", dy64, v64)
    slopes = weights * (slopes - (weights * slopes).sum(-1, keepdims=True))
    yield Call("attention", [q, k, v, bias, [scale]], [y, logarithms])
    yield Call(
        "attention_grad",
        [q, k, v, bias, [scale], y, logarithms, dy],
        [
            np.einsum("bnsl,blnd->bsnd", slopes, k64) * scale,
            np.einsum("bnsl,bsnd->blnd", slopes, q64) * scale,
            np.einsum("bnsl,bsnd->blnd", weights, dy64),
        ],
    )


def self_attention(draw: Draw) -> Iterator[Call]:
    """The calls of `attention` with the queries, keys and values in one tensor."""
    s = draw.choice(draw.size(), draw.size(140, 120), draw.size(530, 500))
    value, gradient = attention_calls(draw, draw.size(3), s, s, draw.size(4), draw.size(40))
    qkv = np.concatenate(value.inputs[:3])
    yield Call("self_attention", [qkv, *value.inputs[3:]], value.expected)
    yield Call("self_attention_grad", [qkv, *gradient.inputs[3:]], [np.concatenate(gradient.expected)])
    yield Call("self_attention", [qkv[: len(qkv) - 1], *value.inputs[3:]], None)


def linear(draw: Draw) -> Iterator[Call]:
    rows, k, n = draw.choice(draw.size(), draw.size(90)), draw.size(40), draw.choice(draw.size(), draw.size(130))
    x, weight, bias, dy = draw.normal(rows, k), draw.normal(n, k), draw.normal(n), draw.normal(rows, n)
    x64, weight64, bias64, dy64 = doubles(x, weight, bias, dy)
    yield Call("linear", [x, weight], [x64 @ weight64.T])
    yield Call("linear_bias", [x, weight, bias], [x64 @ weight64.T + bias64])
    yield Call("linear_input_grad", [weight, dy], [dy64 @ weight64])
    yield Call("linear_weight_grad", [x, dy], [dy64.T @ x64])
    yield Call("linear_bias_grad", [dy], [dy64.sum(0)])


def stacked_linear(draw: Draw) -> Iterator[Call]:
    b, s, k, n, layers = (
        draw.size(3),
        draw.size(20),
        draw.size(40),
        draw.choice(draw.size(), draw.size(130)),
        draw.size(3),
    )
    x, dy = draw.normal(b, s, k), draw.normal(layers * b, s, n)
    weights, biases = draw.normal(layers, n, k), draw.normal(layers, n)
    x64, dy64, weights64, biases64 = doubles(x, dy.reshape(layers, b, s, n), weights, biases)
    parameters = [value for pair in zip(weights, biases) for value in pair]
    y = np.einsum("bsk,lnk->lbsn", x64, weights64) + biases64[:, None, None]
    dweights = [(np.einsum("bsn,bsk->nk", part, x64), part.sum((0, 1))) for part in dy64]
    yield Call("stacked_linear", [x, *parameters], [y.reshape(dy.shape)])
    yield Call("stacked_linear_input_grad", [*weights, dy], [np.einsum("lbsn,lnk->bsk", dy64, weights64)])
    yield Call("stacked_linear_weight_grad", [x, dy], [value for pair in dweights for value in pair])


def convolution(draw: Draw) -> Iterator[Call]:
    side, frames, stride = draw.choice(1, 3, 3), draw.size(3), draw.choice(1, 2)
    most = draw.choice(3, 9, 9, 20)
    b, t, c, o = draw.size(3), draw.size(most if most < 20 else 3), draw.size(40), draw.size(40)
    yield from convolution_calls(draw, (b, t, c, draw.size(most), draw.size(most)), (o, c, frames, side, side), stride)


def large_convolution(draw: Draw) -> Iterator[Call]:
    """Sizes at which the work is divided differently for each number of threads."""
    frames = draw.size(3)
    x, outputs, stride = draw.choice(
        ((1, 4, draw.size(20, 16), 26, draw.size(40, 20)), draw.size(20, 16), 1),  # columns of Winograd's GEMMs
        ((draw.size(18, 15), 3, 16, 10, draw.size(12, 10)), 17, 1),  # Winograd with a clip per thread
        ((1, 1, draw.size(3), 9, draw.size(400, 200)), draw.size(50, 20), draw.choice(1, 2)),  # few input channels
        ((1, 2, draw.size(70, 20), 30, draw.size(80, 40)), draw.size(8), draw.choice(1, 2)),  # few output channels
    )
    yield from convolution_calls(draw, x, (outputs, x[2], frames, 3, 3), stride)


def convolution_calls(draw: Draw, x_shape: tuple, weight_shape: tuple, stride: int) -> Iterator[Call]:
    """x (B, T, C, H, W), weight (O, C, k, k', k') with random padding, and a cache or replicated frames before x."""
    (b, t, c, h, w), (o, _, frames, side, _) = x_shape, weight_shape
    padding = [draw.size(side - 1, 0) for _ in range(4)]
    top, bottom, left, right = padding
    before, replicate = draw.size(3, 0), draw.choice(False, True)
    x, weight, bias = draw.normal(*x_shape), draw.normal(*weight_shape), draw.normal(o)
    cache = draw.normal(b, before, c, h, w)
    has_cache = not replicate and before > 0
    settings = [*padding, before if replicate else 0, stride]
    inputs = [*([cache] if has_cache else []), x, weight, bias, settings]
    name, about = ("conv3d_cached" if has_cache else "conv3d"), str(settings)
    full64 = np.concatenate((np.repeat(x[:, :1], before, 1) if replicate else cache, x), 1).astype(np.float64)
    count, height, width = [
        (size - kernel) // stride + 1
        for size, kernel in ((before + t, frames), (h + top + bottom, side), (w + left + right, side))
    ]
    if min(count, height, width) < 1:
        yield Call(name, inputs, None, settings=about)
        return
    padded = np.pad(full64, ((0, 0), (0, 0), (0, 0), (top, bottom), (left, right)))
    dy = draw.normal(b, count, o, height, width)
    weight64, dy64 = doubles(weight, dy)
    y = np.zeros(dy.shape) + bias.reshape(-1, 1, 1)
    dpadded, dweight = np.zeros_like(padded), np.zeros_like(weight64)
    for i, j, k in itertools.product(range(frames), range(side), range(side)):
        read = (
            slice(None),
            slice(i, i + stride * count, stride),
            slice(None),
            slice(j, j + stride * height, stride),
            slice(k, k + stride * width, stride),
        )
        y += np.einsum("oc,btchw->btohw", weight64[:, :, i, j, k], padded[read], optimize=True)
        dpadded[read] += np.einsum("oc,btohw->btchw", weight64[:, :, i, j, k], dy64, optimize=True)
        dweight[:, :, i, j, k] = np.einsum("btohw,btchw->oc", dy64, padded[read], optimize=True)
    dfull = dpadded[:, :, :, top : top + h, left : left + w]
    dx = dfull[:, before:].copy()
    if replicate:
        dx[:, 0] += dfull[:, :before].sum(1)
    yield Call(name, inputs, [y], settings=about)
    yield Call(f"{name}_input_grad", [*inputs, dy], [dfull[:, :before], dx] if has_cache else [dx], settings=about)
    yield Call(f"{name}_weight_grad", [*inputs, dy], [dweight, dy64.sum((0, 1, 3, 4))], settings=about)
    for gradient in ("input_grad", "weight_grad"):
        yield Call(f"{name}_{gradient}", [*inputs, dy[:, :, :, :, : width - 1]], None, settings=about)


def optimizer(draw: Draw) -> Iterator[Call]:
    tensors = [draw.normal(*[draw.size() for _ in range(draw.size(3, 0))]) for _ in range(draw.size(5))]
    flat = np.concatenate([tensor.reshape(-1) for tensor in tensors])
    padded = np.concatenate((flat, np.zeros(draw.size(5, 0), np.float32)))
    yield Call("flatten", tensors, [padded])
    yield Call(
        "unflatten",
        [padded, *[np.zeros_like(tensor) for tensor in tensors]],
        [padded, *tensors],
        changed=len(tensors) + 1,
    )
    size = draw.size(40)
    weights, gradient, m, v = draw.normal(size), draw.normal(size), draw.normal(size), draw.normal(size) ** 2
    factor, rate, decay, beta1, beta2, epsilon, step = 0.5, 0.01, 1e-3, 0.9, 0.99, 1e-8, draw.size()
    corrections = 1 / (1 - beta1**step), 1 / (1 - beta2**step)
    weights64, g, m64, v64 = doubles(weights, gradient * np.float32(factor), m, v)
    m64, v64 = beta1 * m64 + (1 - beta1) * g, beta2 * v64 + (1 - beta2) * g * g
    change = weights64 * decay + rate * m64 * corrections[0] / (np.sqrt(v64 * corrections[1]) + epsilon)
    yield Call(
        "adamw",
        [weights, m, v, gradient, [factor, rate, decay, beta1, beta2, *corrections, epsilon]],
        [weights64 - change, m64, v64],
        changed=3,
    )
    yield Call("lerp", [weights, gradient, [0.25]], [0.75 * weights64 + 0.25 * gradient], changed=1)


def permute(draw: Draw) -> Iterator[Call]:
    rank = draw.size(6)
    shape = [draw.size(3 if rank > 4 else draw.choice(9, 40) if rank < 3 else 9) for _ in range(rank)]
    axes = list(draw.random.permutation(rank))
    x = draw.normal(*shape)
    y = x.transpose(axes)
    there, back = [*shape, *axes], [*y.shape, *np.argsort(axes)]
    yield Call("permute", [x, there, back], [y.reshape(x.shape)], settings=str(axes))
    yield Call("permute", [y.reshape(x.shape), back, there], [x], settings=str(axes))


def slices(draw: Draw) -> Iterator[Call]:
    outer, n, m, inner = draw.size(), draw.size(), draw.size(), draw.size()
    front, back, whole = draw.normal(outer, n, inner), draw.normal(outer, m, inner), draw.normal(outer, n + m, inner)
    start = draw.size(m, 0)
    inside = np.zeros_like(whole)
    inside[:, start : start + n] = front
    yield Call("concat", [front, back], [np.concatenate((front, back), 1)])
    yield Call("split", [whole, [n]], [whole[:, :n], whole[:, n:]])
    yield Call("slice", [whole, [start]], [whole[:, start : start + n]])
    yield Call("slice_grad", [front, [start]], [inside])


def doubling(draw: Draw) -> Iterator[Call]:
    a, h, w = draw.size(), draw.size(), draw.size()
    x = draw.normal(a, h, w)
    for kind, image, far in (("nearest", "nearest", 0), ("linear", "bilinear", 0.25)):
        rows, columns = interpolation(h, far), interpolation(w, far)
        for name, apply, back in (
            (f"upsample_axis_{kind}_2x", lambda z: rows @ z, lambda z: rows.T @ z),
            (f"upsample_{image}_2x", lambda z: rows @ z @ columns.T, lambda z: rows.T @ z @ columns),
        ):
            y = apply(x.astype(np.float64))
            dy = draw.normal(*y.shape)
            yield Call(name, [x], [y])
            yield Call(f"{name}_grad", [dy], [back(dy.astype(np.float64))])


def interpolation(n: int, far: float) -> np.ndarray:
    """The matrix (2 n, n) of upsampling by 2: weight 1 - far for the nearest input and far for the next nearest."""
    matrix = np.zeros((2 * n, n))
    for i in range(n):
        for side, neighbor in ((0, max(i - 1, 0)), (1, min(i + 1, n - 1))):
            matrix[2 * i + side, i] += 1 - far
            matrix[2 * i + side, neighbor] += far
    return matrix


OPERATORS = (
    modulated_layer_norm,
    rms_norm,
    channel_layer_norm,
    group_norm,
    bias_gelu,
    gated_residual,
    rope,
    attention,
    self_attention,
    linear,
    stacked_linear,
    convolution,
    optimizer,
    permute,
    slices,
    doubling,
)
LARGE_OPERATORS = (attention_of_few_heads, large_convolution)
