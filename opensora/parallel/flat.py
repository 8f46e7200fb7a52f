"""Collectives of flat buffers over all processes of a run, without gradients: what ZeRO exchanges.

The Ascend branch follows MindSpore's documentation and was not run on this project's CPU machines.
"""

from __future__ import annotations

import numpy as np
from mindspore import Tensor, ops

from opensora.ops.backend import on_ascend


class World:
    """All processes of the run; on one process every method gives back what it is given."""

    def __init__(self, rank: int = 0, size: int = 1):
        self.rank, self.size = rank, size
        if size > 1:
            self._all_reduce, self._all_gather = ops.AllReduce(), ops.AllGather()
            self._reduce_scatter = ops.ReduceScatter() if on_ascend() else None  # a CPU has none

    def sum(self, x: Tensor) -> Tensor:
        """The sum of the processes' x, on each of them."""
        return x if self.size == 1 else self._all_reduce(x)

    def mean(self, x: Tensor) -> np.ndarray:
        """The mean of the processes' x (n,), on each of them."""
        return self.sum(x).asnumpy() / self.size

    def sum_of_part(self, x: Tensor) -> Tensor:
        """Of the sum of the processes' x (size n,) the part (n,) of this process, in order of rank."""
        if self.size == 1:
            return x
        if self._reduce_scatter is not None:
            return self._reduce_scatter(x)
        n = x.shape[0] // self.size
        return ops.deepcopy(self.sum(x)[self.rank * n : (self.rank + 1) * n])  # a view would keep the whole sum alive

    def join(self, part: Tensor) -> Tensor:
        """The processes' parts (n,) one behind the other, in order of rank: (size n,)."""
        return part if self.size == 1 else self._all_gather(part)
