"""The rearrangement of skiparse attention, which splits a sequence into n groups with separate attention.

Single skip: group j holds tokens j, n + j, 2n + j, ... Group skip: group j holds runs j, n + j, ... of n consecutive
tokens. Two blocks of alternating kinds connect every token with every other (Lin et al. 2024, Open-Sora Plan,
arXiv:2412.00131, section 3.2).
"""

from __future__ import annotations

from mindspore import Tensor

from opensora.ops.layout import pad_end, permute, slice_axis


class Skiparse:
    """Splits (B, S, ...) into groups (B n, S'/n, ...) and merges them; S' is S padded to a multiple of n * n."""

    def __init__(self, n: int, group_skip: bool):
        self.n = n
        self.run = n if group_skip else 1

    def padding(self, length: int) -> int:
        """The number of padding tokens that `split` appends."""
        return -length % (self.n * self.n)

    def split(self, x: Tensor) -> Tensor:
        """(B, S, ...) -> (B n, S'/n, ...)."""
        padding = self.padding(x.shape[1])
        if padding:
            x = pad_end(x, 1, padding)
        b, s, rest = x.shape[0], x.shape[1], x.shape[2:]
        x = permute(
            x.reshape(b, s // (self.n * self.run), self.n, -1), (0, 2, 1, 3)
        )  # B rounds n run -> B n rounds run
        return x.reshape((b * self.n, -1) + rest)

    def merge(self, x: Tensor, length: int) -> Tensor:
        """(B n, S'/n, ...) -> (B, S, ...), the inverse of `split`."""
        b, rest = x.shape[0] // self.n, x.shape[2:]
        x = permute(x.reshape(b, self.n, x.shape[1] // self.run, -1), (0, 2, 1, 3))
        x = x.reshape((b, -1) + rest)
        return x if x.shape[1] == length else slice_axis(x, 1, 0, length)
