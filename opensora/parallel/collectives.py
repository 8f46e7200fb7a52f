"""Differentiable collectives on a group of processes.

On Ascend they are MindSpore's own. On a CPU MindSpore supports all-gather over all processes only, so each collective
is an all-gather followed by a selection. All processes of a run must then call the same collectives with the same
shapes. The Ascend branches follow MindSpore's documentation and were not run on this project's CPU machines.

HCCL takes contiguous tensors of one shape on all members. All collectives here join and split along axis 0, so that
what each member sends and receives is contiguous.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Callable

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from opensora.ops.backend import on_ascend, on_cpu
from opensora.parallel.groups import Group


def barrier(world_size: int) -> None:
    """Returns when all processes of the run have called it."""
    if world_size > 1:
        ops.AllGather()(Tensor([0.0])).asnumpy()


def smallest(values: Sequence[float], world_size: int) -> list[float]:
    """The smallest of the processes' values at each position, as float32; every process gets the same list."""
    own = np.array(values, np.float32)
    if world_size > 1:
        own = ops.AllGather()(Tensor(own)).asnumpy().reshape(world_size, -1).min(0)
    return own.tolist()


def any_process(wanted: bool, world_size: int) -> bool:
    """Whether one of the processes of the run wants something, the same in all of them."""
    return smallest([0.0 if wanted else 1.0], world_size)[0] == 0.0


class _Collective(nn.Cell):
    """The operations that the collectives share; `native`: MindSpore's own collectives are available."""

    def __init__(self, group: Group):
        super().__init__()
        self.group = group
        self.native = on_ascend()
        # On a CPU, which tensors of those gathered from the world are the group's.
        self.first, self.end, self.stride = group.ranks[0], group.ranks[-1] + 1, group.stride
        self.all_gather = ops.AllGather(group.name) if self.native else ops.AllGather()

    def gather(self, x: Tensor) -> Tensor:
        """The members' x in order of rank: (...) -> (size, ...)."""
        x = x.expand_dims(0)
        if self.native:
            return self.all_gather(x.contiguous())
        return call(self.all_gather, x)[self.first : self.end : self.stride]

    def gather_list(self, x: Tensor) -> list:
        """The members' x, in order of rank."""
        gathered = self.gather(x)
        return [gathered[i] for i in range(self.group.size)]

    def sum_members(self, x: Tensor) -> Tensor:
        """The sum of the members' x."""
        tensors = self.gather_list(x)
        total = tensors[0]
        for tensor in tensors[1:]:
            total = total + tensor
        return total

    def shard(self, x: Tensor, axis: int) -> Tensor:
        """This member's shard of x: (..., size n, ...) -> (..., n, ...)."""
        n = x.shape[axis] // self.group.size
        return x.narrow(axis, self.group.index * n, n)

    def shards(self, x: Tensor, axis: int) -> Tensor:
        """All members' shards of x, along a new first axis: (..., size n, ...) -> (size, ..., n, ...), contiguous."""
        size, shape = self.group.size, x.shape
        x = x.reshape(shape[:axis] + (size, shape[axis] // size) + shape[axis + 1 :])
        x = x.transpose(_to_front(axis, len(shape) + 1))
        return x.contiguous() if self.native else x

    def joined(self, x: Tensor, axis: int) -> Tensor:
        """The inverse of `shards`: (size, ..., n, ...) -> (..., size n, ...)."""
        shape = x.shape[1:]
        x = x.transpose(_from_front(axis, len(shape) + 1))
        return x.reshape(shape[:axis] + (self.group.size * shape[axis],) + shape[axis + 1 :])


@ops.constexpr
def travels_as_float32(dtype) -> bool:
    """Whether tensors of `dtype` are converted for a collective: a CPU has collectives for 32 bits only."""
    return on_cpu() and dtype in (ms.float16, ms.bfloat16)


def call(collective: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A collective of x, in a dtype that the device has it for."""
    if travels_as_float32(x.dtype):
        return collective(x.astype(ms.float32)).astype(x.dtype)
    return collective(x)


@ops.constexpr
def _to_front(axis: int, count: int) -> tuple:
    """Axes in the order that moves `axis` to the front."""
    return (axis, *(i for i in range(count) if i != axis))


@ops.constexpr
def _from_front(axis: int, count: int) -> tuple:
    """Axes in the order that moves the first one before the axis that is then `axis` + 1."""
    return (*range(1, axis + 1), 0, *range(axis + 1, count))


class AllReduce(_Collective):
    """The sum of the members' x, on every member."""

    def __init__(self, group: Group):
        super().__init__(group)
        if self.native:
            self.reduce = ops.AllReduce(ops.ReduceOp.SUM, group.name)

    def construct(self, x: Tensor) -> Tensor:
        return self.reduce(x.contiguous()) if self.native else self.sum_members(x)

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor):
        """Each member's x contributes to every member's output: the gradients are summed."""
        return (self.reduce(dout.contiguous()) if self.native else self.sum_members(dout),)


class ReduceScatter(_Collective):
    """The sum of the members' x, sharded along `axis` in order of rank: (..., size n, ...) -> (..., n, ...)."""

    def __init__(self, group: Group, axis: int):
        super().__init__(group)
        self.axis = axis
        if self.native:
            self.reduce = ops.ReduceScatter(ops.ReduceOp.SUM, group.name)

    def construct(self, x: Tensor) -> Tensor:
        if self.native:
            return self.reduce(self.shards(x, self.axis))[0]
        return self.shard(self.sum_members(x), self.axis)

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor):
        """Each shard of x contributes to one member's output with weight one."""
        return (self.joined(self.gather(dout), self.axis),)


class Broadcast(_Collective):
    """The first member's x, on every member."""

    def __init__(self, group: Group):
        super().__init__(group)
        if self.native:
            self.send = ops.Broadcast(group.ranks[0], group.name)
            self.reduce = ops.AllReduce(ops.ReduceOp.SUM, group.name)

    def construct(self, x: Tensor) -> Tensor:
        return self.send((x.contiguous(),))[0] if self.native else self.gather_list(x)[0]

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor):
        """The first member's x reaches every member; the others' have no effect, but all join the reduction."""
        total = self.reduce(dout.contiguous()) if self.native else self.sum_members(dout)
        return (total if self.group.is_first else ops.depend(ops.zeros_like(dout), total),)


class AllGather(_Collective):
    """Concatenates the members' x along `axis` in order of rank: (..., n, ...) -> (..., size n, ...)."""

    def __init__(self, group: Group, axis: int):
        super().__init__(group)
        self.axis = axis
        if self.native:
            self.reduce = ops.ReduceScatter(ops.ReduceOp.SUM, group.name)

    def construct(self, x: Tensor) -> Tensor:
        return self.joined(self.gather(x), self.axis)

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor):
        """A reduce-scatter: every member's gradient of this member's x is summed."""
        if self.native:
            return (self.reduce(self.shards(dout, self.axis))[0],)
        return (self.shard(self.sum_members(dout), self.axis),)


class AllToAll(_Collective):
    """Splits x along `split_axis`, sends one shard to each member, concatenates the received ones along `join_axis`.

    Args:
        by_gather: exchange by an all-gather, which sends `size` times as much, on servers without AlltoAll.
    """

    def __init__(self, group: Group, split_axis: int, join_axis: int, by_gather: bool = False):
        super().__init__(group)
        self.split_axis, self.join_axis = split_axis, join_axis
        self.by_gather = by_gather or not self.native
        if not self.by_gather:
            self.all_to_all = ops.AlltoAll(group.size, 0, 0, group.name)

    def construct(self, x: Tensor) -> Tensor:
        return self.exchange(x, self.split_axis, self.join_axis)

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor):
        """The gradient is the inverse exchange."""
        return (self.exchange(dout, self.join_axis, self.split_axis),)

    def exchange(self, x: Tensor, split_axis: int, join_axis: int) -> Tensor:
        shards = self.shards(x, split_axis)
        if self.by_gather:
            received = self.shard(self.gather(shards), 1)  # size, 1, ...
            received = received.reshape(shards.shape)
        else:
            received = self.all_to_all(shards)
        return self.joined(received, join_axis)
