"""Building blocks of WFVAE, all on (B, T, C, H, W).

Streaming. A long clip passes through the model in chunks along time and gives what the whole clip would. Cells with
a memory of earlier frames take part through two arguments and a second result:

    y, past = cell(x, past, last)

`past` is what the cell returned for the chunk before (None: x begins with the clip's first frame), `last` says that
no chunk follows (then the past that comes back is empty). Called with x alone, a cell sees the whole clip. Where several processes
share a stream (`opensora.parallel.stream`), the past comes from the process with the chunk before.
"""

from __future__ import annotations

from collections.abc import Sequence

from mindspore import Tensor, nn, ops

from opensora.models.common.layers import ChannelLayerNorm, Conv2d, Conv3d, GroupNorm
from opensora.ops.attention import attention
from opensora.ops.layout import concat, permute, slice_axis
from opensora.ops.resample import nearest_2x, upsample_bilinear_2x, upsample_linear_2x
from opensora.parallel.stream import LocalStream

NORM_TYPES = ("groupnorm", "layernorm")
T_INTERPOLATIONS = ("nearest", "trilinear")


def normalize(channels: int, norm_type: str, silu: bool = False, per_frame: bool = False) -> nn.Cell:
    """A norm, with SiLU after it if `silu`."""
    if norm_type == "groupnorm":
        return GroupNorm(channels, per_frame=per_frame, silu=silu)
    return LayerNorm(channels, silu)


class LayerNorm(nn.Cell):
    """LayerNorm over channels; the inner cell is there for the published names (`norm1.norm.weight`)."""

    def __init__(self, channels: int, silu: bool):
        super().__init__()
        self.norm = ChannelLayerNorm(channels, silu=silu)

    def construct(self, x: Tensor) -> Tensor:
        return self.norm(x)


class Chain(nn.SequentialCell):
    """Cells one after the other; those that stream are given their part of the past."""

    streams = True

    def __init__(self, cells: Sequence[nn.Cell]):
        super().__init__(*cells)
        self.streaming = tuple(getattr(cell, "streams", False) for cell in cells)

    def construct(self, x: Tensor, past=None, last: bool = True):
        kept = ()
        for i, cell in enumerate(self.cell_list):
            if self.streaming[i]:
                x, cell_past = cell(x, None if past is None else past[len(kept)], last)
                kept = kept + (cell_past,)
            else:
                x = cell(x)
        return x, () if last else kept


class CausalConv3d(nn.Cell):
    """3x3x3 convolution that sees a frame and the two before it; before the clip's first frame stand copies of it.

    `padding` is (top, bottom, left, right). `resent`: how many frames at the end of a chunk the next chunk brings
    again (see `WFVAEModel.decode_chunks`).
    """

    streams = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        padding: Sequence[int] = (1, 1, 1, 1),
        resent: int = 0,
    ):
        super().__init__()
        self.conv = Conv3d(in_channels, out_channels, 3, stride, padding)
        self.kept = 3 - stride
        self.resent = resent
        self.stream = LocalStream()

    def construct(self, x: Tensor, past=None, last: bool = True):
        kept = None
        if self.stream.is_shared or not last:
            past, kept = self.stream.exchange_halo(self.newest(x, past), past)
        return self.conv(x, past, 2 if past is None else 0), () if last else kept

    def newest(self, x: Tensor, past) -> Tensor:
        """The frames that the next chunk needs; a short chunk takes some from its own past.

        A last chunk may be too short even so; nobody needs what it gives.
        """
        start = x.shape[1] - self.resent - self.kept
        if start < 0:
            x = concat(ops.tile(slice_axis(x, 1, 0, 1), (1, 2, 1, 1, 1)) if past is None else past, x, 1)
            start = max(0, start + 2)
        return slice_axis(x, 1, start, start + self.kept)


class PointwiseConv3d(nn.Cell):
    """1x1x1 convolution."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = Conv3d(in_channels, out_channels, 1)

    def construct(self, x: Tensor) -> Tensor:
        return self.conv(x)


class ResnetBlock2D(nn.Cell):
    """Norm, SiLU, convolution, twice, around a shortcut; frame by frame. The channel count stays."""

    def __init__(self, channels: int, norm_type: str, dropout: float):
        super().__init__()
        self.norm1 = normalize(channels, norm_type, silu=True, per_frame=True)
        self.conv1 = Conv2d(channels, channels)
        self.norm2 = normalize(channels, norm_type, silu=True, per_frame=True)
        self.dropout = nn.Dropout(p=dropout)
        self.conv2 = Conv2d(channels, channels)

    def construct(self, x: Tensor) -> Tensor:
        h = self.conv1(self.norm1(x))
        h = self.conv2(self.dropout(self.norm2(h)))
        return x + h


class ResnetBlock3D(nn.Cell):
    """Norm, SiLU, causal convolution, twice, around a shortcut that is 1x1x1 where the channel count changes."""

    streams = True

    def __init__(self, in_channels: int, out_channels: int, norm_type: str, dropout: float, resent: int = 0):
        super().__init__()
        self.norm1 = normalize(in_channels, norm_type, silu=True)
        self.conv1 = CausalConv3d(in_channels, out_channels, resent=resent)
        self.norm2 = normalize(out_channels, norm_type, silu=True)
        self.dropout = nn.Dropout(p=dropout)
        self.conv2 = CausalConv3d(out_channels, out_channels, resent=resent)
        self.widens = in_channels != out_channels
        if self.widens:
            self.nin_shortcut = PointwiseConv3d(in_channels, out_channels)

    def construct(self, x: Tensor, past=None, last: bool = True):
        past1, past2 = (None, None) if past is None else past
        h, past1 = self.conv1(self.norm1(x), past1, last)
        h, past2 = self.conv2(self.dropout(self.norm2(h)), past2, last)
        if self.widens:
            x = self.nin_shortcut(x)
        return x + h, () if last else (past1, past2)


class AttnBlock3DFix(nn.Cell):
    """Self-attention of one head over the positions of each frame, around a shortcut."""

    def __init__(self, channels: int, norm_type: str):
        super().__init__()
        self.norm = normalize(channels, norm_type)
        self.q = PointwiseConv3d(channels, channels)
        self.k = PointwiseConv3d(channels, channels)
        self.v = PointwiseConv3d(channels, channels)
        self.proj_out = PointwiseConv3d(channels, channels)

    def construct(self, x: Tensor) -> Tensor:
        b, t, c, h, w = x.shape
        y = self.norm(x)
        q, k, v = [
            permute(projected.reshape(b * t, 1, c, h * w), (0, 3, 1, 2))  # B T C H W -> (B T) (H W) 1 C
            for projected in (self.q(y), self.k(y), self.v(y))
        ]
        y = permute(attention(q, k, v), (0, 2, 3, 1)).reshape(b, t, c, h, w)
        return x + self.proj_out(y)


class Spatial2xTime2x3DDownsample(nn.Cell):
    """Halves height, width and, causally, time: 1 + 2n frames become 1 + n."""

    streams = True

    def __init__(self, channels: int):
        super().__init__()
        self.conv = CausalConv3d(channels, channels, stride=2, padding=(0, 1, 0, 1))

    def construct(self, x: Tensor, past=None, last: bool = True):
        return self.conv(x, past, last)


class Spatial2xTime2x3DUpsample(nn.Cell):
    """Doubles height, width and time, except that a clip's first frame stays one: 1 + n frames become 1 + 2n.

    `delay` 1: while more chunks follow, the newest frame is held back until its successor, which it is interpolated
    with, has come.
    """

    streams = True

    def __init__(self, channels: int, t_interpolation: str, delay: int = 0, resent: int = 0):
        super().__init__()
        self.t_upsample = nearest_2x if t_interpolation == "nearest" else upsample_linear_2x
        self.conv = CausalConv3d(channels, channels, resent=2 * resent)
        self.delay = delay
        self.resent = resent
        self.stream = LocalStream()

    def construct(self, x: Tensor, past=None, last: bool = True):
        previous, conv_past = (None, None) if past is None else past
        frames = x.shape[1]
        kept = None
        if self.stream.is_shared or not last:
            # The clip's first frame takes no part in interpolation, so it never serves as the previous one.
            newest = max(min(1, frames - 1), frames - 1 - self.resent)
            previous, kept = self.stream.exchange_halo(slice_axis(x, 1, newest, newest + 1), previous)
        held_back = 0 if last else self.delay
        if previous is None:
            y = slice_axis(x, 1, 0, 1)
            if frames > 1:
                doubled = self.t_upsample(slice_axis(x, 1, 1, frames), 1)
                y = concat(y, slice_axis(doubled, 1, 0, 2 * (frames - 1) - held_back), 1)
        else:
            doubled = self.t_upsample(concat(previous, x, 1), 1)
            y = slice_axis(doubled, 1, 2 - self.delay, 2 * (frames + 1) - held_back)
        y, conv_past = self.conv(upsample_bilinear_2x(y), conv_past, last)
        return y, () if last else (kept, conv_past)


class Wait(nn.Cell):
    """Delays a stream by some frames, which go out in front of the next chunk."""

    def __init__(self, delay: int):
        super().__init__()
        self.delay = delay
        self.stream = LocalStream()

    def construct(self, x: Tensor, past=None, last: bool = True):
        if self.delay == 0:
            return x, ()
        end, kept = x.shape[1] - self.delay, ()
        if self.stream.is_shared or not last:
            past, kept = self.stream.exchange_halo(x[:, end:], past)
        if not last:
            x = x[:, :end]
        if past is not None:
            x = ops.cat((past, x), 1)
        return x, kept
