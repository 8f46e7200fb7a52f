"""Activation functions."""
from __future__ import annotations

from mindspore import Tensor, ops

from opensora import device


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU in its tanh form, x sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3)) (Hendrycks & Gimpel 2016, section 2).

    On Ascend its fused operator; on a CPU elementwise operators, which are several times faster than the fused one.
    """
    if device.on_ascend():
        return ops.gelu(x, approximate="tanh")
    return x * ops.sigmoid(x * (1.5957691216057308 + 0.07135481627159756 * x * x))
