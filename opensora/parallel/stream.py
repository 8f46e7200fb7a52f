"""Context parallelism along time: the members of a group process consecutive chunks of a clip at the same time.

A causal layer needs the last frames before its chunk. The process with the previous chunk sends them at the same layer.
The first member gets them from the last member's chunk of the round before.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Optional

import mindspore as ms
from mindspore import Tensor, nn, ops

from opensora.ops.layout import pad_end
from opensora.parallel.collectives import AllGather
from opensora.parallel.groups import Group


class LocalStream(nn.Cell):
    """One process has all chunks, one after another."""

    size, index, is_shared = 1, 0, False

    def exchange_halo(self, newest: Tensor, past: Optional[Tensor]) -> tuple[Optional[Tensor], Tensor]:
        """The frames before this chunk, and the cache for this process's next chunk.

        Args:
            newest: the last frames of this chunk, for its successor.
            past: the cache from this process's previous chunk; None at the beginning of the clip.
        """
        return past, newest

    def gather_in_order(self, chunk: Tensor, count: int) -> Iterator[Tensor]:
        """The first `count` of the members' chunks (B, C, t, H, W) in order; their lengths t may differ."""
        yield chunk


class ContextParallelStream(LocalStream):
    """Member k % size has chunk k. Every member calls every layer in every round, even without a chunk of its own."""

    is_shared = True

    def __init__(self, group: Group):
        super().__init__()
        self.size, self.index = group.size, group.index
        self.gather = AllGather(group, 0)

    def exchange_halo(self, newest: Tensor, past: Optional[Tensor]) -> tuple[Optional[Tensor], Tensor]:
        halos = ops.chunk(self.gather(newest), self.size)
        return (past if self.index == 0 else halos[self.index - 1]), halos[-1]

    def gather_in_order(self, chunk: Tensor, count: int) -> Iterator[Tensor]:
        lengths = self.gather(Tensor([chunk.shape[2]], ms.int32)).asnumpy().tolist()
        missing = max(lengths) - chunk.shape[2]
        if missing:
            chunk = pad_end(chunk, 2, missing)
        chunks = ops.chunk(self.gather(chunk), self.size)
        for gathered, length in zip(chunks[:count], lengths):
            yield gathered[:, :, :length]
