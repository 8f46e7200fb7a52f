"""`ops.rotary_position_embedding`."""

from __future__ import annotations

import numpy as np
from mindspore import Tensor, ops

from standins.gradients import NumpyOperator
from standins.machine import FIRST_GENERATION, Machine
from standins.rules import FLOATS, rule

NAME, SOURCE = "ops.rotary_position_embedding", "docstring of ops.rotary_position_embedding"
CHIP = rule(NAME, "Atlas A2 or A3", "aclnnRotaryPositionEmbedding, supported products")
DTYPE = rule(NAME, "x is float16, bfloat16 or float32", f"{SOURCE}, x")
SAME = rule(NAME, "cos and sin have x's dtype", f"{SOURCE}, cos and sin")
RANK = rule(NAME, "x, cos and sin have rank 4", f"{SOURCE}, x and cos")
MODE = rule(NAME, "mode is 0 (halves) or 1 (interleaved)", f"{SOURCE}, mode")
WIDTH = rule(NAME, "D is even and below 896", f"{SOURCE}, table of layouts")
LAYOUT = rule(
    NAME,
    "cos and sin have one shape: in mode 0 11SD, B1SD, BNSD (x BNSD), 1S1D, BS1D, BSND (x BSND) or S11D, SB1D, SBND "
    "(x SBND), in mode 1 11SD, 1S1D or S11D",
    f"{SOURCE}, table of layouts",
)
COUNTS = rule(NAME, "B and N are below 1000", f"{SOURCE}, table of layouts")
ALIGNED = rule(NAME, "not x BNSD with B N > 8 S and D of a multiple of 32 bytes", f"{SOURCE}, note")
RANGE = rule(NAME, "cos and sin are in [-1, 1]", f"{SOURCE}, cos")


def install(patch, machine: Machine) -> None:
    def rotary_position_embedding(x: Tensor, cos: Tensor, sin: Tensor, mode: int = 0) -> Tensor:
        machine.calls.add(NAME)
        CHIP.require(machine.chip != FIRST_GENERATION, machine.chip)
        DTYPE.require(x.dtype in FLOATS, x.dtype)
        SAME.require(cos.dtype == sin.dtype == x.dtype, x.dtype, cos.dtype, sin.dtype)
        RANK.require(x.ndim == cos.ndim == sin.ndim == 4, x.shape, cos.shape, sin.shape)
        MODE.require(mode in (0, 1), mode)
        d = x.shape[3]
        WIDTH.require(d % 2 == 0 and d < 896, d)
        layouts = _layouts(x.shape, cos.shape, mode)
        LAYOUT.require(bool(layouts) and cos.shape == sin.shape, x.shape, cos.shape, sin.shape)
        # If cos does not tell the layouts apart, one that is allowed is enough.
        allowed = [name for name in layouts if all(size < 1000 for size in _counts(x.shape, name))]
        COUNTS.require(bool(allowed), x.shape)
        # Other layouts have no such limit.
        b, n, s = x.shape[:3]
        too_slow = allowed == ["BNSD"] and b * n > 8 * s and d * x.itemsize % 32 == 0
        ALIGNED.require(not too_slow, x.shape)
        RANGE.require(all(np.abs(y.float().asnumpy()).max() <= 1 for y in (cos, sin)), "a larger value")
        return _rotation(mode)(x, cos, sin)

    patch.setattr(ops, NAME.removeprefix("ops."), rotary_position_embedding)


def _layouts(x: tuple, cos: tuple, mode: int) -> list[str]:
    """The layouts of x that allow this shape of cos."""
    a, b, c, d = x
    allowed = {
        "BNSD": [(1, 1, c, d), (a, 1, c, d), (a, b, c, d)],
        "BSND": [(1, b, 1, d), (a, b, 1, d), (a, b, c, d)],
        "SBND": [(a, 1, 1, d), (a, b, 1, d), (a, b, c, d)],
    }
    return [name for name, shapes in allowed.items() if cos in (shapes if mode == 0 else shapes[:1])]


def _counts(x: tuple, layout: str) -> tuple[int, int]:
    """B and N."""
    return x[layout.index("B")], x[layout.index("N")]


def _rotation(mode: int) -> NumpyOperator:
    def rotate(x):
        """Every pair (a, b) of channels -> (-b, a)."""
        if mode == 0:
            first, second = np.split(x, 2, -1)
            return np.concatenate([-second, first], -1)
        return np.stack([-x[..., 1::2], x[..., ::2]], -1).reshape(x.shape)

    def forward(x, cos, sin):
        return x * cos + rotate(x) * sin

    def backward(x, cos, sin, dy):
        return dy * cos - rotate(dy * sin), np.zeros_like(cos), np.zeros_like(sin)

    return NumpyOperator(forward, backward)
