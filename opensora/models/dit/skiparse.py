"""The rearrangement of skiparse attention, which splits a sequence into n groups with separate attention.

Single skip: group j holds tokens j, n + j, 2n + j, ... Group skip: group j holds runs j, n + j, ... of n consecutive
tokens. Two blocks of alternating kinds connect every token with every other (Lin et al. 2024, Open-Sora Plan,
arXiv:2412.00131, section 3.2).
"""

from __future__ import annotations

from mindspore import Tensor

from opensora.ops.layout import pad_end, permute, slice_axis


class Skiparse:
    """Splits (B, S, D) into groups (B n, S'/n, D) and merges them; S' is S padded to a multiple of n * n."""

    def __init__(self, n: int, group_skip: bool):
        self.n = n
        self.run = n if group_skip else 1

    def padding(self, length: int) -> int:
        """The number of padding tokens that `split` appends."""
        return -length % (self.n * self.n)

    def split(self, x: Tensor) -> Tensor:
        """(B, S, D) -> (B n, S'/n, D)."""
        b, s, d = x.shape
        padding = self.padding(s)
        if padding:
            x = pad_end(x, 1, padding)
        x = permute(x.reshape(b, -1, self.n, self.run, d), (0, 2, 1, 3, 4))  # B rounds n run D -> B n rounds run D
        return x.reshape(b * self.n, -1, d)

    def merge(self, x: Tensor, length: int) -> Tensor:
        """(B n, S'/n, D) -> (B, S, D), the inverse of `split`."""
        groups, _, d = x.shape
        x = permute(x.reshape(groups // self.n, self.n, -1, self.run, d), (0, 2, 1, 3, 4))
        x = x.reshape(groups // self.n, -1, d)
        return x if x.shape[1] == length else slice_axis(x, 1, 0, length)
