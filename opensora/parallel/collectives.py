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


class AllGather(nn.Cell):
    """Joins the members' x along `axis`, in order of rank: (..., n, ...) -> (..., size n, ...)."""

    def __init__(self, group: Group, axis: int):
        super().__init__()
        self.group, self.axis = group, axis
        self.native = device.on_ascend()
        self.gather = ops.AllGather(group.name) if self.native else ops.AllGather()

    def construct(self, x: Tensor) -> Tensor:
        gathered = self.gather(x.expand_dims(0))  # one row for each process of the group, or of the world
        first = 0 if self.native else self.group.ranks[0]
        return ops.cat([gathered[first + i] for i in range(self.group.size)], self.axis)

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor):
        """Each member's gradient reaches this one's part: they are summed."""
        own = self.group.index * x.shape[self.axis]
        gathered = self.gather(dout.expand_dims(0))
        first = 0 if self.native else self.group.ranks[0]
        total = gathered[first]
        for i in range(1, self.group.size):
            total = total + gathered[first + i]
        return (total.narrow(self.axis, own, x.shape[self.axis]),)


class AllToAll(nn.Cell):
    """Cuts x along `split_axis`, sends a piece to each member, joins what comes along `join_axis` in order of rank."""

    def __init__(self, group: Group, split_axis: int, join_axis: int):
        super().__init__()
        self.group = group
        self.split_axis, self.join_axis = split_axis, join_axis
        self.native = device.on_ascend()
        if self.native:
            self.forward = ops.AlltoAll(group.size, split_axis, join_axis, group.name)
            self.backward = ops.AlltoAll(group.size, join_axis, split_axis, group.name)
        else:
            self.gather = ops.AllGather()

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
        gathered = self.gather(x.expand_dims(0))
        return ops.cat([gathered[rank].narrow(split_axis, self.group.index * piece, piece)
                        for rank in self.group.ranks], join_axis)
