"""Differentiable collectives on a group of processes.

On Ascend they are MindSpore's own. On a CPU MindSpore supports all-gather over all processes only, so each collective
is an all-gather followed by a selection. All processes of a run must then call the same collectives with the same
shapes. The Ascend branches follow MindSpore's documentation and were not run on this project's CPU machines.
"""

from __future__ import annotations

from mindspore import Tensor, nn, ops

from opensora.ops.backend import on_ascend
from opensora.parallel.groups import Group


def barrier(world_size: int) -> None:
    """Returns when all processes of the run have called it."""
    if world_size > 1:
        ops.AllGather()(Tensor([0.0])).asnumpy()


class _Collective(nn.Cell):
    """The operations that the collectives share; `native`: MindSpore's own collectives are available."""

    def __init__(self, group: Group):
        super().__init__()
        self.group = group
        self.native = on_ascend()
        self.first = 0 if self.native else group.ranks[0]  # of the group, or of the world
        self.gather = ops.AllGather(group.name) if self.native else ops.AllGather()

    def gather_list(self, x: Tensor) -> list:
        """The members' x, in order of rank."""
        gathered = self.gather(x.expand_dims(0))
        return [gathered[self.first + i] for i in range(self.group.size)]

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


class AllReduce(_Collective):
    """The sum of the members' x, on every member."""

    def __init__(self, group: Group):
        super().__init__(group)
        if self.native:
            self.reduce = ops.AllReduce(ops.ReduceOp.SUM, group.name)

    def construct(self, x: Tensor) -> Tensor:
        return self.reduce(x) if self.native else self.sum_members(x)

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor):
        """Each member's x contributes to every member's output: the gradients are summed."""
        return (self.reduce(dout) if self.native else self.sum_members(dout),)


class ReduceScatter(_Collective):
    """The sum of the members' x, sharded along `axis` in order of rank: (..., size n, ...) -> (..., n, ...)."""

    def __init__(self, group: Group, axis: int):
        super().__init__(group)
        self.axis = axis
        if self.native:
            self.reduce = ops.ReduceScatter(ops.ReduceOp.SUM, group.name)

    def construct(self, x: Tensor) -> Tensor:
        if self.native:  # the operator supports axis 0 only
            return self.reduce(x.swapaxes(0, self.axis).contiguous()).swapaxes(0, self.axis)
        return self.shard(self.sum_members(x), self.axis)

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor):
        """Each shard of x contributes to one member's output with weight one."""
        return (ops.cat(self.gather_list(dout), self.axis),)


class Broadcast(_Collective):
    """The first member's x, on every member."""

    def __init__(self, group: Group):
        super().__init__(group)
        if self.native:
            self.send = ops.Broadcast(group.ranks[0], group.name)
            self.reduce = ops.AllReduce(ops.ReduceOp.SUM, group.name)

    def construct(self, x: Tensor) -> Tensor:
        return self.send((x,))[0] if self.native else self.gather_list(x)[0]

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor):
        """The first member's x reaches every member; the others' have no effect, but all join the reduction."""
        total = self.reduce(dout) if self.native else self.sum_members(dout)
        return (total if self.group.is_first else ops.depend(ops.zeros_like(dout), total),)


class AllGather(_Collective):
    """Concatenates the members' x along `axis` in order of rank: (..., n, ...) -> (..., size n, ...)."""

    def __init__(self, group: Group, axis: int):
        super().__init__(group)
        self.axis = axis

    def construct(self, x: Tensor) -> Tensor:
        return ops.cat(self.gather_list(x), self.axis)

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor):
        """A reduce-scatter: every member's gradient of this member's x is summed."""
        return (self.shard(self.sum_members(dout), self.axis),)


class AllToAll(_Collective):
    """Splits x along `split_axis`, sends one piece to each member, concatenates the received ones along `join_axis`."""

    def __init__(self, group: Group, split_axis: int, join_axis: int):
        super().__init__(group)
        self.split_axis, self.join_axis = split_axis, join_axis
        if self.native:
            self.forward = ops.AlltoAll(group.size, split_axis, join_axis, group.name)
            self.backward = ops.AlltoAll(group.size, join_axis, split_axis, group.name)

    def construct(self, x: Tensor) -> Tensor:
        if self.native:
            return self.forward(x)
        return self.exchange(x, self.split_axis, self.join_axis)

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor):
        """The gradient is the inverse exchange."""
        if self.native:
            return (self.backward(dout),)
        return (self.exchange(dout, self.join_axis, self.split_axis),)

    def exchange(self, x: Tensor, split_axis: int, join_axis: int) -> Tensor:
        return ops.cat([self.shard(tensor, split_axis) for tensor in self.gather_list(x)], join_axis)
