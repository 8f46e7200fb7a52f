"""Floating-point operations and bytes of a case, counted from its shapes.

A multiply-add is two operations. Bytes are the minimum that GEMMs move: each reads its two operands and writes its
result in float32. Elementwise operations and norms are not counted. A backward pass counts as two forward passes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mindspore import nn

from benchmarks.cases import SAMPLING_STEPS, Case
from opensora.cost_model import SPATIAL_STRIDE, TEMPORAL_STRIDE, Run, linear_maps, row_counts
from opensora.models import WFVAEModel
from opensora.models.common.layers import Conv2d, Conv3d
from opensora.models.common.video_blocks import AttnBlock3DFix
from opensora.models.dit.config import OpenSoraConfig
from opensora.models.dit.skiparse import Skiparse
from opensora.models.text_encoder.config import MT5Config

FLOAT = 4


@dataclass(frozen=True)
class Work:
    flops: float = 0
    bytes: float = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.bytes + other.bytes)

    def __mul__(self, times: float) -> Work:
        return Work(times * self.flops, times * self.bytes)


def total(items: Sequence[Work]) -> Work:
    return sum(items, Work())


def linear(rows: int, inputs: int, outputs: int) -> Work:
    return Work(2 * rows * inputs * outputs, FLOAT * (rows * inputs + inputs * outputs + rows * outputs))


def attention(batch: int, queries: int, keys: int, width: int) -> Work:
    """Scores and their product with the values, over all heads (`width` values per token); scores are not written."""
    return Work(4 * batch * queries * keys * width, FLOAT * batch * width * (2 * queries + 2 * keys))


def convolution(positions: int, weight: Sequence[int], stride: int = 1) -> Work:
    """`positions` is frames * height * width of the result, `weight` (outputs, inputs, *kernel), `stride` spatial."""
    outputs, inputs, *kernel = weight
    elements = math.prod(kernel)
    return Work(
        2 * positions * outputs * inputs * elements,
        FLOAT * (positions * stride**2 * inputs + outputs * inputs * elements + positions * outputs),
    )


def vae_encode(case: Case) -> Work:
    """Downsampling counts at the resolution of its output."""
    encoder = WFVAEModel.without_weights(**case.config).encoder
    _, _, frames, height, width = case.input
    fine, middle, coarse = _levels((frames - 1) // TEMPORAL_STRIDE + 1, height // 8, width // 8)
    *down1, halve1 = encoder.down1.cell_list
    *down2, halve2 = encoder.down2.cell_list
    return (
        _convolutions(down1, *fine)
        + _convolutions([halve1], *middle, stride=2)
        + _convolutions([encoder.connect_l1, *down2], *middle)
        + _convolutions([halve2], *coarse, stride=2)
        + _convolutions([encoder.connect_l2, encoder.mid, encoder.conv_out], *coarse)
    )


def vae_decode(case: Case) -> Work:
    """Upsampling counts at the resolution of its output, since its convolution follows the interpolation."""
    decoder = WFVAEModel.without_weights(**case.config).decoder
    fine, middle, coarse = _levels(*case.input[2:])
    *up2, double2, last2 = decoder.up2.cell_list
    *up1, double1, last1 = decoder.up1.cell_list
    return (
        _convolutions([decoder.conv_in, decoder.mid, decoder.connect_l2, *up2], *coarse)
        + _convolutions([double2, last2, decoder.connect_l1, *up1], *middle)
        + _convolutions([double1, last1, decoder.layer, decoder.conv_out], *fine)
    )


def _levels(frames: int, height: int, width: int) -> list[tuple[int, int, int]]:
    """(frames, height, width) at the levels where WFVAE with temporal stride 4 has 128, 256 and 512 channels."""
    return [(2 * frames - 1, 4 * height, 4 * width), (2 * frames - 1, 2 * height, 2 * width), (frames, height, width)]


def _convolutions(cells: Sequence[nn.Cell], frames: int, height: int, width: int, stride: int = 1) -> Work:
    """All convolutions in `cells`, with outputs of this size, and the attention within each frame."""
    nested = [inner for cell in cells for _, inner in cell.cells_and_names()]
    return total(
        [
            convolution(frames * height * width, cell.weight.shape, stride)
            for cell in nested
            if isinstance(cell, (Conv2d, Conv3d))
        ]
    ) + total(
        [
            attention(frames, height * width, height * width, cell.q.conv.weight.shape[0])
            for cell in nested
            if isinstance(cell, AttnBlock3DFix)
        ]
    )


def transformer(case: Case, batch: int) -> tuple[Work, Work]:
    """The work on the text alone, and the rest of a forward pass, for `batch` rows."""
    config = OpenSoraConfig.from_dict(case.config)
    _, _, frames, height, width = case.input
    run = Run(
        config,
        TEMPORAL_STRIDE * (frames - 1) + 1,
        SPATIAL_STRIDE * height,
        SPATIAL_STRIDE * width,
        precision="fp32",
        batch_size=batch,
        max_sequence_length=case.text,
    )
    rows = row_counts(run)
    maps = {
        over: total([linear(rows[over], m.inputs, m.outputs) * m.maps for m in linear_maps(config) if m.over == over])
        for over in rows
    }
    padded = run.tokens + Skiparse(config.sparse_n, group_skip=False).padding(run.tokens)
    dense = attention(batch, run.tokens, run.tokens, config.hidden_size)
    sparse = attention(
        batch * config.sparse_n, padded // config.sparse_n, padded // config.sparse_n, config.hidden_size
    )
    cross = attention(batch, run.tokens, case.text, config.hidden_size)
    blocks = [cross + (sparse if config.is_sparse(i) else dense) for i in range(config.num_layers)]
    text = maps.pop("text")
    return text, total(list(maps.values())) + total(blocks)


def dit_step(case: Case) -> Work:
    return total(transformer(case, case.input[0]))


def train_step(case: Case) -> Work:
    return dit_step(case) * 3


def sampling(case: Case) -> Work:
    """Guidance doubles the rows; the work on the text is done once."""
    text, step = transformer(case, 2 * case.input[0])
    return text + step * SAMPLING_STEPS


def mt5(case: Case) -> Work:
    config = MT5Config.from_dict(case.config)
    batch, tokens = case.input
    rows, width, inner = batch * tokens, config.d_model, config.num_heads * config.d_kv
    layer = (
        linear(rows, width, inner) * 3
        + attention(batch, tokens, tokens, inner)
        + linear(rows, inner, width)
        + linear(rows, width, config.d_ff) * 2
        + linear(rows, config.d_ff, width)
    )
    return layer * config.num_layers


WORK = {
    "vae_encode": vae_encode,
    "vae_decode": vae_decode,
    "dit_step": dit_step,
    "mt5": mt5,
    "train_step": train_step,
    "sampling": sampling,
}
