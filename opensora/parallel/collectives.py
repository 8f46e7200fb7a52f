"""Collectives on a group of processes, each with its gradient.

On Ascend they are MindSpore's own. On a CPU MindSpore gathers over all processes only, so there every collective is
that, and a choice from what comes. All processes of a run must then call the same collectives with the same shapes.
The Ascend branches follow MindSpore's documentation and were not run on this project's CPU machines.
"""
from __future__ import annotations

from mindspore import Tensor, nn, ops

from opensora import device
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
        self.native = device.on_ascend()
        self.first = 0 if self.native else group.ranks[0]  # of the group, or of the world
        self.gather = ops.AllGather(group.name) if self.native else ops.AllGather()

    def rows(self, x: Tensor) -> list:
        gathered = self.gather(x.expand_dims(0))
        return [gathered[self.first + i] for i in range(self.group.size)]


class AllGather(_Rows):
    """Joins the members' x along `axis`, in order of rank: (..., n, ...) -> (..., size n, ...)."""

    def __init__(self, group: Group, axis: int):
        super().__init__(group)
        self.axis = axis

    def construct(self, x: Tensor) -> Tensor:
        return ops.cat(self.rows(x), self.axis)

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor):
        """Each member's gradient reaches this one's part: they are summed."""
        rows = self.rows(dout)
        total = rows[0]
        for row in rows[1:]:
            total = total + row
        return (total.narrow(self.axis, self.group.index * x.shape[self.axis], x.shape[self.axis]),)


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
        piece = x.shape[split_axis] // self.group.size
        return ops.cat([row.narrow(split_axis, self.group.index * piece, piece) for row in self.rows(x)], join_axis)
