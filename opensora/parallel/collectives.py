"""Collectives on a group of processes, each with its gradient.

On Ascend they are MindSpore's own. On a CPU MindSpore gathers over all processes only, so there every collective is
that, and a choice from what comes. All processes of a run must then call the same collectives with the same shapes.
The Ascend branches follow MindSpore's documentation and were not run on this project's CPU machines.
"""

from __future__ import annotations

from mindspore import Tensor, nn, ops

from opensora.ops.backend import on_ascend
from opensora.parallel.groups import Group


def barrier(world_size: int) -> None:
    """Returns when all processes of the run have come here."""
    if world_size > 1:
        ops.AllGather()(Tensor([0.0])).asnumpy()


class _Rows(nn.Cell):
    """What every member of the group has, in order of rank."""

    def __init__(self, group: Group):
        super().__init__()
        self.group = group
        self.native = on_ascend()
        self.first = 0 if self.native else group.ranks[0]  # of the group, or of the world
        self.gather = ops.AllGather(group.name) if self.native else ops.AllGather()

    def rows(self, x: Tensor) -> list:
        gathered = self.gather(x.expand_dims(0))
        return [gathered[self.first + i] for i in range(self.group.size)]

    def total(self, x: Tensor) -> Tensor:
        """The sum over the members."""
        rows = self.rows(x)
        total = rows[0]
        for row in rows[1:]:
            total = total + row
        return total

    def own_part(self, x: Tensor, axis: int) -> Tensor:
        """This member's of as many equal parts of x as there are members."""
        size = x.shape[axis] // self.group.size
        return x.narrow(axis, self.group.index * size, size)


class AllReduce(_Rows):
    """The sum of the members' x, on every member."""

    def __init__(self, group: Group):
        super().__init__(group)
        if self.native:
            self.reduce = ops.AllReduce(ops.ReduceOp.SUM, group.name)

    def construct(self, x: Tensor) -> Tensor:
        return self.reduce(x) if self.native else self.total(x)

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor):
        """Each member's x reaches every member's sum: their gradients are summed."""
        return (self.reduce(dout) if self.native else self.total(dout),)


class ReduceScatter(_Rows):
    """The sum of the members' x, cut along `axis`: (..., size n, ...) -> (..., n, ...), a part for each in order."""

    def __init__(self, group: Group, axis: int):
        super().__init__(group)
        self.axis = axis
        if self.native:
            self.reduce = ops.ReduceScatter(ops.ReduceOp.SUM, group.name)

    def construct(self, x: Tensor) -> Tensor:
        if self.native:  # the operator knows axis 0 only
            return self.reduce(x.swapaxes(0, self.axis).contiguous()).swapaxes(0, self.axis)
        return self.own_part(self.total(x), self.axis)

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor):
        """Every part of x went to one member, with weight one."""
        return (ops.cat(self.rows(dout), self.axis),)


class Broadcast(_Rows):
    """The first member's x, on every member."""

    def __init__(self, group: Group):
        super().__init__(group)
        if self.native:
            self.send = ops.Broadcast(group.ranks[0], group.name)
            self.reduce = ops.AllReduce(ops.ReduceOp.SUM, group.name)

    def construct(self, x: Tensor) -> Tensor:
        return self.send((x,))[0] if self.native else self.rows(x)[0]

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor):
        """The first member's x reaches everyone; nobody else's matters, but all take part in the sum."""
        total = self.reduce(dout) if self.native else self.total(dout)
        return (total if self.group.is_first else ops.depend(ops.zeros_like(dout), total),)


class AllGather(_Rows):
    """Joins the members' x along `axis`, in order of rank: (..., n, ...) -> (..., size n, ...)."""

    def __init__(self, group: Group, axis: int):
        super().__init__(group)
        self.axis = axis

    def construct(self, x: Tensor) -> Tensor:
        return ops.cat(self.rows(x), self.axis)

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor):
        """Each member's gradient reaches this one's part: they are summed."""
        return (self.own_part(self.total(dout), self.axis),)


class AllToAll(_Rows):
    """Cuts x along `split_axis`, sends a piece to each member, joins what comes along `join_axis` in order of rank."""

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
        """The way back is the exchange the other way round."""
        if self.native:
            return (self.backward(dout),)
        return (self.exchange(dout, self.join_axis, self.split_axis),)

    def exchange(self, x: Tensor, split_axis: int, join_axis: int) -> Tensor:
        return ops.cat([self.own_part(row, split_axis) for row in self.rows(x)], join_axis)
