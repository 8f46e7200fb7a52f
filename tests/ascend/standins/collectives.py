"""Collectives of a group, computed with the all-gather over all processes that a CPU has.

All processes of the run must call the same collectives at the same time, with the same shapes.
"""

from __future__ import annotations

import zlib
from typing import Callable

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from standins.machine import FIRST_GENERATION, Machine
from standins.rules import is_contiguous, rule

NAMES = ("AllGather", "AllReduce", "ReduceScatter", "Broadcast", "AlltoAll")
WORLD = "hccl_world_group"
SUMMED = (ms.int8, ms.int16, ms.int32, ms.int64, ms.float16, ms.bfloat16, ms.float32)

CONTIGUOUS = {name: rule(f"ops.{name}", "contiguous input", "HCCL sends memory; views break it") for name in NAMES}
SAME = {
    name: rule(f"ops.{name}", "all members have one shape and dtype", f"docstring of ops.{name}, note")
    for name in NAMES
}
KNOWN = {name: rule(f"ops.{name}", "the group was created", f"docstring of ops.{name}, group") for name in NAMES}
BFLOAT16 = {
    name: rule(f"ops.{name}", "no bfloat16 on a 910A", "HCCL, supported types: bfloat16 on A2 and A3 only")
    for name in NAMES
}
SUM_DTYPE = {
    name: rule(f"ops.{name}", "a numeric dtype", f"docstring of ops.{name} or HCCL, Raises")
    for name in ("AllReduce", "ReduceScatter")
}
OPERATION = {
    name: rule(f"ops.{name}", "op is sum, max, min or prod", f"docstring of ops.{name}, op")
    for name in ("AllReduce", "ReduceScatter")
}
SCATTER = rule("ops.ReduceScatter", "the group's size divides axis 0", "docstring of ops.ReduceScatter, Raises")
ROOT = rule("ops.Broadcast", "root_rank is a member's rank in the world", "docstring of ops.Broadcast, root_rank")
TUPLE = rule("ops.Broadcast", "the input is a tuple", "docstring of ops.Broadcast, example")
MESH = rule("ops.AlltoAll", "not on A2 inference servers", "CANN hcclcpp_07_0026; docstring of ops.AlltoAll, note")
COUNT = rule("ops.AlltoAll", "split_count is the group's size", "docstring of ops.AlltoAll, scatter phase")
SPLIT = rule("ops.AlltoAll", "split_count divides split_dim", "docstring of ops.AlltoAll, Outputs")
AXES = rule("ops.AlltoAll", "split_dim and concat_dim are axes of the input", "docstring of ops.AlltoAll, Inputs")

CREATE, CREATE_SOURCE = "communication.create_group", "docstring of communication.create_group"
SIZE = rule(CREATE, "more than one rank, each once, as a list", f"{CREATE_SOURCE}, note and Raises")
MEMBER = rule(CREATE, "called by members only", f"{CREATE_SOURCE}, example")
NEW = rule(CREATE, "a name has one list of ranks", f"{CREATE_SOURCE}, group")

# Of MindSpore, before they are replaced.
_all_gather, _rank, _size = ops.AllGather, ms.communication.get_rank, ms.communication.get_group_size
REDUCTIONS = {"sum": np.sum, "max": np.max, "min": np.min, "prod": np.prod}


def rank_and_size() -> tuple[int, int]:
    return _rank(), _size()


def exchange(values: np.ndarray) -> np.ndarray:
    """The values of all processes of the run, (processes, *shape). A CPU's all-gather is for 32 bits only."""
    content = values.tobytes()
    words = np.frombuffer(content + bytes(-len(content) % 4), np.int32)
    gathered = _all_gather()(Tensor(words[None])).asnumpy().view(np.uint8)[:, : len(content)]
    return np.ascontiguousarray(gathered).view(values.dtype).reshape(-1, *values.shape)


class Collective:
    """The checks of all collectives, and the exchange. It has no gradient: the project defines its own."""

    name: str
    machine: Machine

    def __init__(self, group: str):
        self.group = group

    def members(self, x: Tensor) -> tuple[list[np.ndarray], tuple[int, ...]]:
        """The members' x in order of rank, and their ranks."""
        self.machine.calls.add(f"ops.{self.name}")
        rank, size = rank_and_size()
        ranks = tuple(range(size)) if self.group == WORLD else self.machine.groups.get(self.group)
        KNOWN[self.name].require(ranks is not None, self.group)
        assert ranks is not None and rank in ranks
        CONTIGUOUS[self.name].require(is_contiguous(x), "a view")
        if self.machine.chip == FIRST_GENERATION:
            BFLOAT16[self.name].require(x.dtype != ms.bfloat16, x.dtype)
        self.check(x, ranks)
        code = zlib.crc32(f"{self.name} {x.dtype}".encode())
        header = np.array([code, x.ndim, *x.shape, *[0] * (8 - x.ndim)], np.int64)
        headers = exchange(header)[list(ranks)]
        SAME[self.name].require(bool((headers == header).all()), *headers.tolist())
        values = x.float().asnumpy() if x.dtype == ms.bfloat16 else x.asnumpy()
        return list(exchange(values)[list(ranks)]), ranks

    def check(self, x: Tensor, ranks: tuple[int, ...]) -> None:
        """Raises Violation for what this collective alone demands."""


class AllGather(Collective):
    def __init__(self, group: str = WORLD):
        super().__init__(group)

    def __call__(self, x: Tensor) -> Tensor:
        return Tensor(np.concatenate(self.members(x)[0]), x.dtype)


class Reduction(Collective):
    def __init__(self, op: str = "sum", group: str = WORLD):
        super().__init__(group)
        OPERATION[self.name].require(op in REDUCTIONS, op)
        self.op = REDUCTIONS[op]

    def check(self, x: Tensor, ranks: tuple[int, ...]) -> None:
        SUM_DTYPE[self.name].require(x.dtype in SUMMED, x.dtype)


class AllReduce(Reduction):
    def __call__(self, x: Tensor) -> Tensor:
        return Tensor(self.op(self.members(x)[0], axis=0), x.dtype)


class ReduceScatter(Reduction):
    def check(self, x: Tensor, ranks: tuple[int, ...]) -> None:
        super().check(x, ranks)
        SCATTER.require(x.ndim > 0 and x.shape[0] % len(ranks) == 0, x.shape, len(ranks))

    def __call__(self, x: Tensor) -> Tensor:
        arrays, ranks = self.members(x)
        return Tensor(np.split(self.op(arrays, axis=0), len(ranks))[ranks.index(rank_and_size()[0])], x.dtype)


class Broadcast(Collective):
    def __init__(self, root_rank: int, group: str = WORLD):
        super().__init__(group)
        self.root = root_rank

    def check(self, x: Tensor, ranks: tuple[int, ...]) -> None:
        ROOT.require(self.root in ranks, self.root, ranks)

    def __call__(self, x: tuple) -> tuple[Tensor, ...]:
        TUPLE.require(isinstance(x, tuple), type(x))
        results = [self.members(tensor) for tensor in x]
        return tuple(Tensor(arrays[ranks.index(self.root)], y.dtype) for y, (arrays, ranks) in zip(x, results))


class AlltoAll(Collective):
    def __init__(self, split_count: int, split_dim: int, concat_dim: int, group: str = WORLD):
        super().__init__(group)
        self.count, self.split, self.concat = split_count, split_dim, concat_dim

    def check(self, x: Tensor, ranks: tuple[int, ...]) -> None:
        MESH.require(self.machine.all_to_all, self.machine.chip)
        COUNT.require(self.count == len(ranks), self.count, len(ranks))
        AXES.require(all(-x.ndim <= axis < x.ndim for axis in (self.split, self.concat)), self.split, self.concat)
        SPLIT.require(x.shape[self.split] % self.count == 0, x.shape, self.split, self.count)

    def __call__(self, x: Tensor) -> Tensor:
        arrays, ranks = self.members(x)
        index = ranks.index(rank_and_size()[0])
        pieces = [np.split(array, self.count, self.split)[index] for array in arrays]
        return Tensor(np.concatenate(pieces, self.concat), x.dtype)


def install(patch, machine: Machine) -> None:
    for collective in (AllGather, AllReduce, ReduceScatter, Broadcast, AlltoAll):
        name = collective.__name__
        patch.setattr(ops, name, type(name, (collective,), {"name": name, "machine": machine}))
    patch.setattr(ms.communication, "create_group", create_group(machine))


def create_group(machine: Machine) -> Callable:
    def create(group: str, rank_ids: list, options=None) -> None:
        SIZE.require(isinstance(rank_ids, list) and 1 < len(rank_ids) == len(set(rank_ids)), rank_ids)
        MEMBER.require(rank_and_size()[0] in rank_ids, rank_ids)
        NEW.require(machine.groups.get(group, tuple(rank_ids)) == tuple(rank_ids), group, rank_ids)
        machine.groups[group] = tuple(rank_ids)

    return create
