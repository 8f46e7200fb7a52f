"""The primitives of `opensora.ops` in numpy, from their formulas; float64 in, float64 out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Optional

import numpy as np


def gelu(x: np.ndarray) -> np.ndarray:
    """x times the normal distribution function of x."""
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, bias: np.ndarray, scale: float) -> np.ndarray:
    """q (B, S, N, D), k and v (B, L, N, D), bias broadcast to (B, N, S, L)."""
    scores = np.einsum("bsnd,blnd->bnsl", q, k) * scale + bias
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bnsl,blnd->bsnd", weights / weights.sum(-1, keepdims=True), v)


def conv3d(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    stride: int = 1,
    padding: Sequence[int] = (0, 0, 0, 0),
    cache: Optional[np.ndarray] = None,
) -> np.ndarray:
    """x (B, T, C, H, W), weight (O, C, k, k', k'), zeros (top, bottom, left, right), frames `cache` before x."""
    if cache is not None:
        x = np.concatenate((cache, x), 1)
    top, bottom, left, right = padding
    x = np.pad(x, ((0, 0), (0, 0), (0, 0), (top, bottom), (left, right)))
    frames, height, width = weight.shape[2:]
    windows = np.lib.stride_tricks.sliding_window_view(x, (1, frames, 1, height, width))[..., 0, :, 0, :, :]
    windows = windows[:, ::stride, :, ::stride, ::stride]
    return np.tensordot(windows, weight, ((2, 5, 6, 7), (1, 2, 3, 4))).transpose(0, 1, 4, 2, 3) + bias[:, None, None]


def conv2d(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray, stride: int = 1, padding: Sequence[int] = (0, 0, 0, 0)
) -> np.ndarray:
    """x (B, T, C, H, W), weight (O, C, k, k): frame by frame."""
    frames = x.reshape((-1, 1) + x.shape[2:])
    y = conv3d(frames, weight[:, :, None], bias, stride, padding)
    return y.reshape(x.shape[:2] + y.shape[2:])


def normalized(x: np.ndarray, axes: tuple, eps: float, centered: bool = True) -> np.ndarray:
    """x, minus its mean if `centered`, divided by its root mean square."""
    x = x - x.mean(axes, keepdims=True) if centered else x
    return x / np.sqrt((x * x).mean(axes, keepdims=True) + eps)


def channel_layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float) -> np.ndarray:
    """x (..., C, H, W)."""
    return normalized(x, (-3,), eps) * weight[:, None, None] + bias[:, None, None]


def group_norm(
    x: np.ndarray, groups: int, weight: np.ndarray, bias: np.ndarray, eps: float, per_frame: bool
) -> np.ndarray:
    """x (B, T, C, H, W)."""
    b, t, c, h, w = x.shape
    y = normalized(x.reshape(b, t, groups, c // groups, h, w), (3, 4, 5) if per_frame else (1, 3, 4, 5), eps)
    return y.reshape(x.shape) * weight[:, None, None] + bias[:, None, None]


def nearest_2x(x: np.ndarray, axis: int) -> np.ndarray:
    return np.repeat(x, 2, axis)


def linear_2x(x: np.ndarray, axis: int) -> np.ndarray:
    """Half-pixel centers, indices clamped at the ends."""
    x = np.moveaxis(x, axis, 0)
    before, after = np.concatenate((x[:1], x[:-1])), np.concatenate((x[1:], x[-1:]))
    y = np.stack((0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after), 1).reshape((-1,) + x.shape[1:])
    return np.moveaxis(y, 0, axis)


def causal_windows(x: np.ndarray) -> np.ndarray:
    """Every second frame and the two before it; the first frame is repeated."""
    padded = np.concatenate((x[:, :1], x[:, :1], x), 1)
    windows = np.stack([padded[:, k : k + 3] for k in range(0, x.shape[1], 2)], 1)
    return windows.reshape((-1, 3) + x.shape[2:])


def inverse_frequencies(dim: int) -> np.ndarray:
    return 10000.0 ** (-np.arange(0, dim, 2) / dim)


def rope_angles(frames: int, height: int, width: int, head_dim: int) -> np.ndarray:
    """(T H W, 1, 3, head_dim / 6) of positions in row-major order, for unit scales."""
    positions = np.stack(np.meshgrid(*map(np.arange, (frames, height, width)), indexing="ij"), -1)
    return positions.reshape(-1, 1, 3, 1) * inverse_frequencies(head_dim // 3)


def rope(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """x (B, S, N, D): sections for t, h and w, whose halves form the pairs."""
    b, s, n, d = x.shape
    first, second = np.moveaxis(x.reshape(b, s, n, 3, 2, d // 6), 4, 0)
    return np.stack((first * cos - second * sin, second * cos + first * sin), 4).reshape(x.shape)


def interleaved_angles(length: int, head_dim: int) -> np.ndarray:
    """(S, 1, head_dim)."""
    return np.outer(np.arange(length), inverse_frequencies(head_dim).repeat(2))[:, None]


def interleaved_rope(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """x (B, S, N, D): neighboring channels form the pairs."""
    rotated = np.stack((-x[..., 1::2], x[..., ::2]), -1).reshape(x.shape)
    return x * cos + rotated * sin


def adamw(
    weights: np.ndarray,
    exp_avg: np.ndarray,
    exp_avg_sq: np.ndarray,
    gradient: np.ndarray,
    learning_rate: float,
    weight_decay: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    step: int,
) -> tuple[np.ndarray, ...]:
    """The new weights and moments (Loshchilov and Hutter 2019, algorithm 2)."""
    exp_avg = beta1 * exp_avg + (1 - beta1) * gradient
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * gradient * gradient
    change = exp_avg / (1 - beta1**step) / (np.sqrt(exp_avg_sq / (1 - beta2**step)) + epsilon)
    return weights - learning_rate * (change + weight_decay * weights), exp_avg, exp_avg_sq
