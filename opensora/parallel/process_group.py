"""Collectives of flat buffers over all processes of a run, without gradients, for ZeRO.

The Ascend branch follows MindSpore's documentation and was not run on this project's CPU machines.
"""

from __future__ import annotations

import numpy as np
from mindspore import Tensor, ops

from opensora.ops.backend import on_ascend
from opensora.parallel.collectives import call


class World:
    """The group of all processes of the run; on one process every method returns its input."""

    def __init__(self, rank: int = 0, size: int = 1):
        self.rank, self.size = rank, size
        if size > 1:
            self._all_reduce, self._all_gather = ops.AllReduce(), ops.AllGather()
            self._reduce_scatter = ops.ReduceScatter() if on_ascend() else None  # a CPU has none

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum of the processes' x, on each of them."""
        return x if self.size == 1 else call(self._all_reduce, x.contiguous())

    def all_reduce_mean(self, x: Tensor) -> np.ndarray:
        """The mean of the processes' x (n,), on each of them."""
        return self.all_reduce(x).asnumpy() / self.size

    def reduce_scatter(self, x: Tensor) -> Tensor:
        """The sum of the processes' x (size n,), of which each process gets its shard (n,) in order of rank."""
        if self.size == 1:
            return x
        if self._reduce_scatter is not None:
            return self._reduce_scatter(x.contiguous())
        n = x.shape[0] // self.size
        shard = self.all_reduce(x)[self.rank * n : (self.rank + 1) * n]
        return shard.copy()  # a view would keep the whole sum alive

    def all_gather(self, shard: Tensor) -> Tensor:
        """The processes' shards (n,), concatenated in order of rank: (size n,)."""
        return shard if self.size == 1 else call(self._all_gather, shard.contiguous())
