"""A stream of chunks along time over the members of a group: each takes every size-th chunk, side by side.

A causal layer needs some frames from before its chunk: those that its left neighbour has at the same layer, at the
same moment. The first member's left neighbour is the last one, a round earlier.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Optional

import mindspore as ms
from mindspore import Tensor, nn, ops

from opensora.parallel.collectives import AllGather
from opensora.parallel.groups import Group


class LocalStream(nn.Cell):
    """One process has all chunks, one after the other."""

    size, index, is_shared = 1, 0, False

    def exchange_halo(self, newest: Tensor, past: Optional[Tensor]) -> tuple:
        """(what comes before this chunk, what to give as `past` with this process's next chunk).

        `newest` is what this chunk has for its successor; None before a chunk says that it begins the clip.
        """
        return past, newest

    def gather_in_order(self, chunk: Tensor, count: int) -> Iterator[Tensor]:
        """The members' chunks (B, C, t, H, W), each with a length of its own, of a round that has `count` of them."""
        yield chunk


class ContextParallelStream(LocalStream):
    """Chunk k is for member k % size. Every member calls every layer in every round, whether it has a chunk or not."""

    is_shared = True

    def __init__(self, group: Group):
        super().__init__()
        self.size, self.index = group.size, group.index
        self.gather = AllGather(group, 0)

    def exchange_halo(self, newest: Tensor, past: Optional[Tensor]) -> tuple:
        rows = ops.chunk(self.gather(newest), self.size)
        return (past if self.index == 0 else rows[self.index - 1]), rows[-1]

    def gather_in_order(self, chunk: Tensor, count: int) -> Iterator[Tensor]:
        lengths = self.gather(Tensor([chunk.shape[2]], ms.int32)).asnumpy().tolist()
        missing = max(lengths) - chunk.shape[2]
        if missing:
            chunk = ops.cat((chunk, ops.zeros((*chunk.shape[:2], missing, *chunk.shape[3:]), chunk.dtype)), 2)
        chunks = ops.chunk(self.gather(chunk), self.size)
        for row, length in zip(chunks[:count], lengths):
            yield row[:, :, :length]
