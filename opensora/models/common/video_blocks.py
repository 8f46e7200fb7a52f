"""Building blocks of the causal video autoencoders, all on (B, T, C, H, W).

Streaming. A long clip is processed in consecutive chunks along time, and the concatenated outputs equal the output for
the whole clip. Layers that depend on earlier frames (causal convolutions, temporal upsampling) keep a cache between
chunks. Such cells have `streams = True` and the signature

    y, new_cache = cell(x, cache, last)

cache: the `new_cache` of the previous chunk; None for the chunk that starts the clip.
last: no chunk follows; the returned cache is then empty.

Called with x alone, a cell processes the whole clip. If several processes share a stream (`opensora.parallel.stream`),
the cache comes from the process that holds the previous chunk.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Union

from mindspore import Tensor, nn

from opensora.models.common.layers import NO_PADDING, ChannelLayerNorm, Conv2d, Conv3d, Dropout, GroupNorm
from opensora.ops.attention import attention
from opensora.ops.layout import concat, permute, slice_axis
from opensora.ops.resample import double_later_frames, nearest_2x, upsample_bilinear_2x, upsample_linear_2x
from opensora.parallel.stream import LocalStream

NORM_TYPES = ("groupnorm", "layernorm")
T_INTERPOLATIONS = ("nearest", "trilinear")


def normalize(channels: int, norm_type: str, silu: bool = False, per_frame: bool = False) -> nn.Cell:
    """The norm layer of `norm_type`, followed by SiLU if `silu`."""
    if norm_type == "groupnorm":
        return GroupNorm(channels, per_frame=per_frame, silu=silu)
    return LayerNorm(channels, silu)


class LayerNorm(nn.Cell):
    """LayerNorm over channels; the inner cell gives the parameters their published names (`norm1.norm.weight`)."""

    def __init__(self, channels: int, silu: bool):
        super().__init__()
        self.norm = ChannelLayerNorm(channels, silu=silu)

    def construct(self, x: Tensor) -> Tensor:
        return self.norm(x)


class StreamingSequential(nn.SequentialCell):
    """A sequence of cells; the cache is a tuple with one item for each cell that streams.

    Args:
        cells: in the order of their computation; a mapping gives their names in parameters, otherwise 0, 1, ...
    """

    streams = True

    def __init__(self, cells: Union[Sequence[nn.Cell], Mapping[str, nn.Cell]]):
        super().__init__(OrderedDict(cells) if isinstance(cells, Mapping) else list(cells))
        self.streaming = tuple(getattr(cell, "streams", False) for cell in self.cell_list)

    def construct(self, x: Tensor, cache=None, last: bool = True):
        new_cache: tuple = ()
        for i, cell in enumerate(self.cell_list):
            if self.streaming[i]:
                x, cell_cache = cell(x, None if cache is None else cache[len(new_cache)], last)
                new_cache = new_cache + (cell_cache,)
            else:
                x = cell(x)
        return x, () if last else new_cache


class CausalConv3d(nn.Cell):
    """3x3x3 convolution over a frame and the two before it; the clip's first frame is replicated as temporal padding.

    Args:
        padding: (top, bottom, left, right).
        overlap: number of frames at the end of a chunk that the next chunk repeats (`WFVAEModel.decode_chunks`).
    """

    streams = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        padding: Sequence[int] = (1, 1, 1, 1),
        overlap: int = 0,
    ):
        super().__init__()
        self.conv = Conv3d(in_channels, out_channels, 3, stride, padding)
        self.cache_frames = 3 - stride
        self.overlap = overlap
        self.stream = LocalStream()

    def construct(self, x: Tensor, cache=None, last: bool = True):
        new_cache = None
        if self.stream.is_shared or not last:
            cache, new_cache = self.stream.exchange_halo(self.tail_frames(x, cache), cache)
        return self.conv(x, cache, 2 if cache is None else 0), () if last else new_cache

    def tail_frames(self, x: Tensor, cache) -> Tensor:
        """The last frames before the overlap, which the next chunk needs; from the cache too if the chunk is short.

        The last chunk of a clip may still be too short; its tail is never used.
        """
        start = x.shape[1] - self.overlap - self.cache_frames
        if start < 0:
            if cache is None:
                first = slice_axis(x, 1, 0, 1)
                cache = concat(first, first, 1)
            x = concat(cache, x, 1)
            start = max(0, start + 2)
        return slice_axis(x, 1, start, start + self.cache_frames)


class PointwiseConv3d(nn.Cell):
    """1x1x1 convolution."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = Conv3d(in_channels, out_channels, 1)

    def construct(self, x: Tensor) -> Tensor:
        return self.conv(x)


class ResnetBlock2D(nn.Cell):
    """Residual block of twice (norm, SiLU, convolution) on each frame; a 1x1 shortcut if the channel count changes."""

    def __init__(self, in_channels: int, out_channels: int, norm_type: str, dropout: float):
        super().__init__()
        self.norm1 = normalize(in_channels, norm_type, silu=True, per_frame=True)
        self.conv1 = Conv2d(in_channels, out_channels)
        self.norm2 = normalize(out_channels, norm_type, silu=True, per_frame=True)
        self.dropout = Dropout(dropout)
        self.conv2 = Conv2d(out_channels, out_channels)
        self.has_shortcut = in_channels != out_channels
        if self.has_shortcut:
            self.nin_shortcut = Conv2d(in_channels, out_channels, 1, padding=NO_PADDING)

    def construct(self, x: Tensor) -> Tensor:
        h = self.conv1(self.norm1(x))
        h = self.conv2(self.dropout(self.norm2(h)))
        if self.has_shortcut:
            x = self.nin_shortcut(x)
        return x + h


class ResnetBlock3D(nn.Cell):
    """Residual block of twice (norm, SiLU, causal convolution); a 1x1x1 shortcut if the channel count changes."""

    streams = True

    def __init__(self, in_channels: int, out_channels: int, norm_type: str, dropout: float, overlap: int = 0):
        super().__init__()
        self.norm1 = normalize(in_channels, norm_type, silu=True)
        self.conv1 = CausalConv3d(in_channels, out_channels, overlap=overlap)
        self.norm2 = normalize(out_channels, norm_type, silu=True)
        self.dropout = Dropout(dropout)
        self.conv2 = CausalConv3d(out_channels, out_channels, overlap=overlap)
        self.has_shortcut = in_channels != out_channels
        if self.has_shortcut:
            self.nin_shortcut = PointwiseConv3d(in_channels, out_channels)

    def construct(self, x: Tensor, cache=None, last: bool = True):
        cache1, cache2 = (None, None) if cache is None else cache
        h, cache1 = self.conv1(self.norm1(x), cache1, last)
        h, cache2 = self.conv2(self.dropout(self.norm2(h)), cache2, last)
        if self.has_shortcut:
            x = self.nin_shortcut(x)
        return x + h, () if last else (cache1, cache2)


class AttnBlock3DFix(nn.Cell):
    """Residual single-head self-attention over the positions of each frame."""

    def __init__(self, channels: int, norm_type: str):
        super().__init__()
        self.norm = normalize(channels, norm_type)
        self.q = PointwiseConv3d(channels, channels)
        self.k = PointwiseConv3d(channels, channels)
        self.v = PointwiseConv3d(channels, channels)
        self.proj_out = PointwiseConv3d(channels, channels)

    def construct(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q, k, v = self.tokens(self.q(y)), self.tokens(self.k(y)), self.tokens(self.v(y))
        return x + self.proj_out(self.frames(attention(q, k, v), x.shape))

    def tokens(self, x: Tensor) -> Tensor:
        """(B, T, C, H, W) -> (B T, H W, 1, C)."""
        b, t, c, h, w = x.shape
        return permute(x.reshape(b * t, 1, c, h * w), (0, 3, 1, 2))

    def frames(self, tokens: Tensor, shape: tuple) -> Tensor:
        """The inverse of `tokens`, to (B, T, C, H, W) = `shape`."""
        return permute(tokens, (0, 2, 3, 1)).reshape(shape)


class Spatial2xTime2x3DDownsample(nn.Cell):
    """Halves height, width and, causally, time: 1 + 2n frames become 1 + n."""

    streams = True

    def __init__(self, channels: int):
        super().__init__()
        self.conv = CausalConv3d(channels, channels, stride=2, padding=(0, 1, 0, 1))

    def construct(self, x: Tensor, cache=None, last: bool = True):
        return self.conv(x, cache, last)


class Spatial2xTime2x3DUpsample(nn.Cell):
    """Doubles height, width and time, except that a clip's first frame is not doubled: 1 + n frames become 1 + 2n.

    Args:
        delay: 1: while more chunks follow, the last output frame is delayed until the next chunk brings the frame
            that it is interpolated with.
        overlap: see `CausalConv3d`.
    """

    streams = True

    def __init__(self, channels: int, t_interpolation: str, delay: int = 0, overlap: int = 0):
        super().__init__()
        self.t_upsample = nearest_2x if t_interpolation == "nearest" else upsample_linear_2x
        self.conv = CausalConv3d(channels, channels, overlap=2 * overlap)
        self.delay = delay
        self.overlap = overlap
        self.stream = LocalStream()

    def construct(self, x: Tensor, cache=None, last: bool = True):
        previous, conv_cache = (None, None) if cache is None else cache
        frames = x.shape[1]
        new_cache = None
        if self.stream.is_shared or not last:
            # The clip's first frame is not interpolated, so it is never cached as the previous frame.
            tail = max(min(1, frames - 1), frames - 1 - self.overlap)
            previous, new_cache = self.stream.exchange_halo(slice_axis(x, 1, tail, tail + 1), previous)
        delayed = 0 if last else self.delay
        if previous is None:
            y = double_later_frames(x, self.t_upsample)
            if delayed and frames > 1:
                y = slice_axis(y, 1, 0, 2 * frames - 1 - delayed)
        else:
            doubled = self.t_upsample(concat(previous, x, 1), 1)
            y = slice_axis(doubled, 1, 2 - self.delay, 2 * (frames + 1) - delayed)
        y, conv_cache = self.conv(upsample_bilinear_2x(y), conv_cache, last)
        return y, () if last else (new_cache, conv_cache)
