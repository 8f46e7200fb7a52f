"""A call that breaks a documented rule is caught, for every rule."""

from __future__ import annotations

from functools import partial
from typing import Callable

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops
from standins import attention as flash
from standins import collectives, norms, rope, updates
from standins.arithmetic import CONVERSION
from standins.machine import A2, A3, FIRST_GENERATION
from standins.random_numbers import DRAWS, DROPOUT
from standins.rules import RULES, Rule, Violation
from standins.settings import KNOWN, ONCE
from standins.table import table
from standins.undocumented import (
    CONVOLUTION_GROUPS,
    FIRST_BFLOAT16,
    MATMUL_RANK,
    NO_BFLOAT16,
    PAD_RANK,
    PAD_SIGN,
    POOL_DTYPE,
)

EPS = 1e-6


def random(*shape, dtype=ms.float32, seed=0) -> Tensor:
    return Tensor(np.random.RandomState(seed).standard_normal(shape), ms.float32).astype(dtype)


def half(*shape, seed=0) -> Tensor:
    return random(*shape, dtype=ms.float16, seed=seed)


def flash_call(b=1, s=4, n=2, d=16, length=4, kv=None, dtype=ms.float16, heads=None, mask=None, **options) -> None:
    q, k = (random(b, size, count, d, dtype=dtype) for size, count in ((s, n), (length, kv or n)))
    options = {"input_layout": "BSND", "attn_mask": mask, **options}
    ops.flash_attention_score(q, options.pop("key", k), options.pop("value", k), heads or n, **options)


def layer_call(x=(2, 3, 8), dtype=ms.float32, shape=(8,), weight=None, eps=EPS) -> None:
    ops.layer_norm(random(*x).astype(dtype), shape, weight, None, eps)


def rms_call(x: Tensor, gamma: Tensor, epsilon=EPS) -> None:
    ops.rms_norm(x, gamma, epsilon)


def group_call(x=(2, 4, 3), dtype=ms.float32, groups=2, weight=None, eps=EPS) -> None:
    ops.group_norm(random(*x).astype(dtype), groups, weight, None, eps)


def rope_call(x=(2, 5, 4, 16), cos=(1, 5, 1, 16), mode=0, dtype=ms.float32, cos_dtype=None, scale=1.0) -> None:
    table = (ops.ones(cos) * scale).astype(cos_dtype or dtype)
    ops.rotary_position_embedding(ops.ones(x, dtype), table, table, mode)


def adam_call(var, m=None, gradient=None) -> None:
    m = Parameter(ops.zeros_like(var)) if m is None else m
    gradient = ops.zeros_like(var) if gradient is None else gradient
    ops.Adam()(var, m, Parameter(ops.zeros_like(var)), 0.9, 0.99, 1e-3, 0.9, 0.99, 1e-8, gradient)


def dropout_call() -> None:
    nn.Dropout(p=0.5).set_train()(random(2, 3))


VIEW = random(4, 16).swapaxes(0, 1)  # (16, 4)
ODD = random(1, 4, 2, 20).astype(ms.float16)[..., :16]  # a view of the right shape
FULL = ops.zeros((1, 1, 4, 4), ms.uint8)
ONES = Tensor(np.ones(8, np.float32))
X8 = random(2, 3, 8)
BF16 = random(2, 3, 4, 4).astype(ms.bfloat16)
MODE, HF32 = "precision_mode", "conv_allow_hf32"


def precision(name: str, *values) -> None:
    for value in values:
        getattr(ms.device_context.ascend.op_precision, name)(value)


def implicit(operator: Callable) -> Callable:
    return lambda: operator(half(2, 3), random(2, 3))


FIRST, BFLOAT = {"chip": FIRST_GENERATION}, {"as_bfloat16": True}
# Rule, the machine, a call that breaks the rule.
VIOLATIONS: list[tuple[Rule, dict, Callable]] = [
    (flash.CHIP, FIRST, flash_call),
    (flash.DTYPE, {}, partial(flash_call, dtype=ms.float32)),
    (flash.SAME_DTYPE, {}, partial(flash_call, key=random(1, 4, 2, 16))),
    (flash.RANK, {}, partial(flash_call, key=half(1, 4, 32))),
    (flash.KEY_SHAPE, {}, partial(flash_call, value=half(1, 5, 2, 16))),
    (flash.KEY_SHAPE, {}, partial(flash_call, key=half(2, 4, 2, 16), value=half(2, 4, 2, 16))),
    (flash.BATCH, {}, partial(flash_call, b=2001, s=1, length=1, n=1)),
    (flash.LENGTHS, {}, partial(flash_call, s=512 * 1024 + 1, length=1, n=1)),
    (flash.HEADS, {}, partial(flash_call, n=257, s=1, length=1)),
    (flash.HEADS, {}, partial(flash_call, heads=3)),
    (flash.KEY_HEADS, {}, partial(flash_call, n=4, kv=3)),
    (flash.WIDTH, {}, partial(flash_call, d=72)),
    (flash.WIDTH, {}, partial(flash_call, d=528)),
    (flash.CONTIGUOUS, {}, partial(flash_call, key=ODD)),
    (flash.CONTIGUOUS, {}, partial(flash_call, mask=ops.zeros((1, 1, 1, 4), ms.uint8).broadcast_to((1, 1, 4, 4)))),
    (flash.MASK_DTYPE, {}, partial(flash_call, mask=FULL.astype(ms.float16))),
    (flash.MASK_SHAPE, {}, partial(flash_call, mask=FULL[:, :, :1].contiguous())),
    (flash.MASK_VALUES, {}, partial(flash_call, mask=FULL + 2)),
    (flash.LAYOUT, {}, partial(flash_call, input_layout="BNDS")),
    (norms.LAYER_DTYPE, {}, partial(layer_call, dtype=ms.int32)),
    (norms.LAYER_SAME, {}, partial(layer_call, dtype=ms.float16, weight=ONES)),
    (norms.LAYER_SHAPE, {}, partial(layer_call, shape=(3,))),
    (norms.LAYER_WEIGHT, {}, partial(layer_call, weight=random(3, 8))),
    (norms.LAYER_EPS, {}, partial(layer_call, eps=1)),
    (norms.RMS_CHIP, FIRST, partial(rms_call, X8, ONES)),
    (norms.RMS_DTYPE, {}, partial(rms_call, X8.astype(ms.float64), ONES.astype(ms.float64))),
    (norms.RMS_SAME, {}, partial(rms_call, X8.astype(ms.float16), ONES)),
    (norms.RMS_RANK, {}, partial(rms_call, ONES, X8)),
    (norms.RMS_RANK, {}, partial(rms_call, X8, ONES[:4])),
    (norms.RMS_EPSILON, {}, partial(rms_call, X8, ONES, 0.0)),
    (norms.GROUP_DTYPE, {}, partial(group_call, dtype=ms.float64)),
    (norms.GROUP_SAME, {}, partial(group_call, dtype=ms.float16, weight=random(4))),
    (norms.GROUP_RANK, {}, partial(group_call, x=(4,))),
    (norms.GROUP_RANK, {}, partial(group_call, weight=random(4, 1))),
    (norms.GROUP_COUNT, {}, partial(group_call, groups=3)),
    (norms.GROUP_EPS, {}, partial(group_call, eps=0)),
    (rope.CHIP, FIRST, rope_call),
    (rope.DTYPE, {}, partial(rope_call, dtype=ms.float64)),
    (rope.SAME, {}, partial(rope_call, dtype=ms.float16, cos_dtype=ms.float32)),
    (rope.RANK, {}, partial(rope_call, cos=(5, 1, 16))),
    (rope.MODE, {}, partial(rope_call, mode=2)),
    (rope.WIDTH, {}, partial(rope_call, x=(1, 1, 1, 896), cos=(1, 1, 1, 896))),
    (rope.WIDTH, {}, partial(rope_call, x=(1, 2, 1, 7), cos=(1, 2, 1, 7))),
    (rope.LAYOUT, {}, partial(rope_call, cos=(1, 5, 4, 16))),
    (rope.LAYOUT, {}, partial(rope_call, cos=(2, 5, 1, 16), mode=1)),
    (rope.COUNTS, {}, partial(rope_call, x=(1000, 5, 4, 16))),
    (rope.COUNTS, {}, partial(rope_call, x=(2, 5, 1000, 16))),
    (rope.ALIGNED, {}, partial(rope_call, x=(9, 5, 2, 16), cos=(1, 1, 2, 16))),
    (rope.RANGE, {}, partial(rope_call, scale=1.5)),
    (updates.PARAMETERS, {}, partial(adam_call, random(3))),
    (updates.PARAMETERS, {}, partial(adam_call, Parameter(random(3)), random(3))),
    (updates.DTYPE, {}, partial(adam_call, Parameter(random(3).astype(ms.float64)))),
    (updates.SHAPES, {}, partial(adam_call, Parameter(random(3)), gradient=random(4))),
    (FIRST_BFLOAT16, FIRST, lambda: random(3).astype(ms.bfloat16)),
    (FIRST_BFLOAT16, FIRST, lambda: Parameter(random(3)).set_dtype(ms.bfloat16)),
    (POOL_DTYPE, {}, lambda: ops.max_pool2d(random(1, 1, 4, 4), 2, 2)),
    (PAD_RANK, {}, lambda: ops.pad(random(1, 1, 1, 1, 1, 2), (0, 1))),
    (PAD_SIGN, {}, lambda: ops.pad(random(2, 3), (0, -1))),
    (MATMUL_RANK, {}, lambda: ops.matmul(random(1, 1, 1, 1, 1, 2, 2), random(2, 2))),
    (CONVOLUTION_GROUPS, {}, lambda: ops.Conv2D(4, 1, group=2)),
    (DROPOUT, {}, dropout_call),
    *[(demand, {}, partial(lambda name: getattr(ops, name)(2), name)) for name, demand in DRAWS.items()],
    *[
        (NO_BFLOAT16[name], machine, partial(operator, x))
        for machine, x in ((BFLOAT, half(1, 2, 4, 4)), ({}, BF16))
        for name, operator in {
            "silu": lambda x: nn.SiLU()(x),
            "sigmoid": lambda x: x.sigmoid(),
            "rsqrt": lambda x: ops.rsqrt(x),
            "Conv2D": lambda x: ops.Conv2D(3, 1)(x, x),
            "Conv3D": lambda x: ops.Conv3D(3, 1)(x, x),
        }.items()
    ],
    (NO_BFLOAT16["Conv2D"], BFLOAT, lambda: nn.Conv2d(2, 3, 1)(half(1, 2, 4, 4))),
    *[
        (CONVERSION, {}, implicit(operator))
        for operator in (
            lambda x, y: x + y,
            lambda x, y: y * x,
            lambda x, y: x - y,
            lambda x, y: x / y,
            lambda x, y: x < y,
            lambda x, y: x.add(y),
            lambda x, y: ops.maximum(x, y),
            lambda x, y: ops.where(y > 0, x, y),
            lambda x, y: ops.cat((x, y)),
            lambda x, y: Parameter(x) * y.sum(),
            lambda x, y: x * y.astype(ms.int32),
            lambda x, y: ops.assign_add(Parameter(y), x),
        )
    ],
    (KNOWN[MODE], {}, partial(precision, MODE, "fp32")),
    (KNOWN[HF32], {}, partial(precision, HF32, "False")),
    (KNOWN["matmul_allow_hf32"], {}, partial(precision, "matmul_allow_hf32", 2)),
    (ONCE[MODE], {}, partial(precision, MODE, "force_fp16", "must_keep_origin_dtype")),
    (ONCE[HF32], {}, partial(precision, HF32, True, False)),
    (ONCE["matmul_allow_hf32"], {}, partial(precision, "matmul_allow_hf32", True, False)),
]
# Rule, the machine, a call of a process of two whose partner sends what it sends.
PAIR = "pair"
COLLECTIVES: dict[str, Callable] = {
    "AllGather": lambda group=PAIR: ops.AllGather(group),
    "AllReduce": lambda group=PAIR: ops.AllReduce("sum", group),
    "ReduceScatter": lambda group=PAIR: ops.ReduceScatter("sum", group),
    "Broadcast": lambda group=PAIR: lambda x: ops.Broadcast(0, group)((x,)),
    "AlltoAll": lambda group=PAIR: ops.AlltoAll(2, 0, 0, group),
}


def grouped(name: str, x: Tensor, group: str = PAIR) -> Callable:
    return lambda: COLLECTIVES[name](group)(x)


VIOLATIONS += [
    *[(collectives.CONTIGUOUS[name], {}, grouped(name, VIEW)) for name in COLLECTIVES],
    *[(collectives.KNOWN[name], {}, grouped(name, X8, "other")) for name in COLLECTIVES],
    *[(collectives.BFLOAT16[name], FIRST, grouped(name, BF16)) for name in COLLECTIVES],
    *[(collectives.SUM_DTYPE[name], {}, grouped(name, X8 > 0)) for name in collectives.SUM_DTYPE],
    *[
        (collectives.OPERATION[name], {}, partial(lambda name: getattr(ops, name)("mean", PAIR), name))
        for name in collectives.OPERATION
    ],
    (collectives.SCATTER, {}, grouped("ReduceScatter", random(3))),
    (collectives.ROOT, {}, lambda: ops.Broadcast(2, PAIR)((X8,))),
    (collectives.TUPLE, {}, lambda: ops.Broadcast(0, PAIR)(X8)),
    (collectives.MESH, {"all_to_all": False}, grouped("AlltoAll", X8)),
    (collectives.COUNT, {}, lambda: ops.AlltoAll(4, 2, 2, PAIR)(X8)),
    (collectives.SPLIT, {}, lambda: ops.AlltoAll(2, 1, 1, PAIR)(X8)),
    (collectives.AXES, {}, lambda: ops.AlltoAll(2, 3, 0, PAIR)(X8)),
    (collectives.SIZE, {}, lambda: ms.communication.create_group("one", [0])),
    (collectives.SIZE, {}, lambda: ms.communication.create_group("twice", [0, 0])),
    (collectives.SIZE, {}, lambda: ms.communication.create_group("tuple", (0, 1))),
    (collectives.MEMBER, {}, lambda: ms.communication.create_group("others", [2, 3])),
    (collectives.NEW, {}, lambda: ms.communication.create_group(PAIR, [1, 0])),
]


@pytest.fixture
def in_a_pair(monkeypatch) -> None:
    """This process is the first of two, and the other sends the same."""
    monkeypatch.setattr(collectives, "rank_and_size", lambda: (0, 2))
    monkeypatch.setattr(collectives, "exchange", lambda values: np.stack([values, values]))


@pytest.mark.parametrize("demand, machine, call", VIOLATIONS, ids=lambda value: getattr(value, "operator", None))
def test_violation_is_caught(demand, machine, call, ascend, in_a_pair):
    ascend(**machine).groups[PAIR] = (0, 1)
    with pytest.raises(Violation) as caught:
        call()
    assert str(caught.value).startswith(f"{demand.operator}") and demand.demand in str(caught.value)


@pytest.mark.parametrize("name", COLLECTIVES)
def test_different_members_are_caught(name, ascend, in_a_pair, monkeypatch):
    ascend().groups[PAIR] = (0, 1)
    COLLECTIVES[name]()(X8)
    monkeypatch.setattr(collectives, "exchange", lambda values: np.stack([values, values + (np.arange(10) == 2)]))
    with pytest.raises(Violation, match=f"ops.{name}: {collectives.SAME[name].demand}"):
        COLLECTIVES[name]()(X8)


def test_every_rule_has_a_violation():
    covered = {demand for demand, _, _ in VIOLATIONS} | set(collectives.SAME.values())
    assert covered == set(RULES)


def test_table_lists_every_operator():
    assert all(f"`{demand.operator}`" in table() for demand in RULES)


def test_allowed_calls_pass(ascend, in_a_pair):
    """The largest values that the rules allow."""
    for chip in (A2, A3):
        ascend(chip).groups[PAIR] = (0, 1)
        flash_call(b=2000, s=1, length=1, n=1)
        flash_call(n=256, s=1, length=1)
        flash_call(d=512, mask=FULL.astype(ms.bool_))
        flash_call(mask=FULL[0, 0].contiguous())
        rope_call(x=(999, 5, 4, 16))
        rope_call(x=(2, 5, 4, 894), cos=(1, 5, 1, 894), mode=1)
        ops.pad(random(1, 1, 1, 1, 2), (0, 1))
        ops.max_pool2d(half(1, 1, 4, 4), 2, 2)
        adam_call(Parameter(random(3)))
        _ = half(2, 3) * 2 + 1 - half(2, 3), ops.where(random(2, 3) > 0, half(2, 3), half(2, 3))
        ops.silu(half(2, 3))
    ascend(FIRST_GENERATION)
    layer_call(dtype=ms.float16)
    group_call(dtype=ms.float16)
