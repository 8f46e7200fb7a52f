"""Sequence parallelism over heads (Jacobs et al. 2023, DeepSpeed-Ulysses): tokens are split over the members of a
group; for attention an all-to-all gives each member all tokens of some heads.

A model calls these methods on one process, too, where they return their input.
"""

from __future__ import annotations

from mindspore import Tensor, nn

from opensora.ops.layout import pad_end, slice_axis
from opensora.parallel.collectives import AllGather, AllToAll
from opensora.parallel.groups import Group


class NoSequenceParallel(nn.Cell):
    """One process has the whole sequence."""

    def split(self, x: Tensor) -> Tensor:
        """Tokens (B, S, D) -> this member's (B, s, D)."""
        return x

    def gather(self, x: Tensor, length: int) -> Tensor:
        """(B, s, D) of each member -> (B, S, D), S = `length`."""
        return x

    def all_to_all_heads(self, x: Tensor, length: int) -> Tensor:
        """This member's tokens, all heads (B, s, N, D) -> all tokens, this member's heads (B, S, N / size, D)."""
        return x

    def all_to_all_tokens(self, x: Tensor) -> Tensor:
        """The inverse of `all_to_all_heads`."""
        return x


class UlyssesSequenceParallel(NoSequenceParallel):
    """Tokens are split evenly over a group, after zero padding to a multiple of its size."""

    def __init__(self, group: Group):
        super().__init__()
        self.size, self.index = group.size, group.index
        self.tokens_to_heads = AllToAll(group, 2, 1, group.all_to_all == "gather")
        self.heads_to_tokens = AllToAll(group, 1, 2, group.all_to_all == "gather")
        self.gather_tokens = AllGather(group, 1)

    def split(self, x: Tensor) -> Tensor:
        x = self.pad(x)
        s = x.shape[1] // self.size
        return slice_axis(x, 1, self.index * s, (self.index + 1) * s)

    def gather(self, x: Tensor, length: int) -> Tensor:
        return self.trim(self.gather_tokens(x), length)

    def all_to_all_heads(self, x: Tensor, length: int) -> Tensor:
        return self.trim(self.tokens_to_heads(x), length)

    def all_to_all_tokens(self, x: Tensor) -> Tensor:
        return self.heads_to_tokens(self.pad(x))

    def pad(self, x: Tensor) -> Tensor:
        missing = -x.shape[1] % self.size
        return pad_end(x, 1, missing) if missing else x

    def trim(self, x: Tensor, length: int) -> Tensor:
        return x if x.shape[1] == length else slice_axis(x, 1, 0, length)
