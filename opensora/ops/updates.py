"""Flat buffers of parameters, of any dtype, and optimizer steps on float32 buffers (N,), in place. PyNative mode."""

from __future__ import annotations

from collections.abc import Sequence

import mindspore as ms
from mindspore import Tensor, ops

from opensora.ops.backend import on_cpu
from opensora.ops.cpu import optim as kernels
from opensora.ops.cpu.custom_op import available


def flatten(tensors: Sequence[Tensor], size: int, dtype) -> Tensor:
    """Concatenates the elements of any number of tensors of type `dtype` and pads them with zeros: (size,)."""
    if tensors and available(dtype):
        return kernels.flatten(tensors, size)
    missing = size - sum(tensor.size for tensor in tensors)
    padding = ops.zeros(missing, ms.float32).astype(dtype)  # a CPU has no zeros in bfloat16
    return ops.cat([*(tensor.reshape(-1) for tensor in tensors), padding])


def split_like(flat: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The inverse of `flatten`: views of `flat` in the shapes of the tensors."""
    sizes = [tensor.size for tensor in tensors]
    padding = flat.size - sum(sizes)
    pieces = ops.split(flat, [*sizes, padding] if padding else sizes)
    return [piece.reshape(tensor.shape) for piece, tensor in zip(pieces, tensors)]


def unflatten(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    """Overwrites the tensors, which have the type of `flat`, with its consecutive elements."""
    if available(ms.float32):  # the kernels copy 16-bit elements as well
        kernels.unflatten(flat, tensors)
        return
    for tensor, piece in zip(tensors, split_like(flat, tensors)):
        if flat.dtype == ms.bfloat16 and on_cpu():  # which has no assignment in bfloat16
            tensor.set_data(piece.copy())
        else:
            ops.assign(tensor, piece)


def adamw(
    weights: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    gradient: Tensor,
    factor: float,
    learning_rate: float,
    weight_decay: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    step: int,
) -> None:
    """AdamW step (Loshchilov and Hutter 2019, algorithm 2) that updates `weights` and both moments in place.

    The gradient is multiplied by `factor`, and `step` counts from 1.
    """
    if available(weights.dtype):
        kernels.adamw(
            weights, exp_avg, exp_avg_sq, gradient, factor, learning_rate, weight_decay, beta1, beta2, epsilon, step
        )
        return
    # ops.Adam updates Parameters only; shards are Tensors, which the elementary operators are documented for.
    gradient = gradient * factor
    ops.assign_add(exp_avg, (gradient - exp_avg) * (1 - beta1))
    ops.assign_add(exp_avg_sq, (gradient * gradient - exp_avg_sq) * (1 - beta2))
    if weight_decay:
        ops.assign_sub(weights, weights * (learning_rate * weight_decay))
    root = ops.sqrt(exp_avg_sq * (1 / (1 - beta2**step))) + epsilon
    ops.assign_sub(weights, exp_avg / root * (learning_rate / (1 - beta1**step)))


def lerp_(shadow: Tensor, weights: Tensor, part: float) -> None:
    """shadow += (weights - shadow) * part"""
    if available(shadow.dtype):
        kernels.lerp(shadow, weights, part)
    else:
        ops.assign_add(shadow, (weights - shadow) * part)
