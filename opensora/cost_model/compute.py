"""Parameters and floating-point operations of the transformer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from opensora.cost_model.run import BYTES, Run

if TYPE_CHECKING:
    from opensora.models.dit.config import TransformerConfig


class LinearMap(NamedTuple):
    """`maps` linear maps of one shape, applied to the rows of `over` (a key of `row_counts`).

    `adapted`: LoRA adapts them by default.
    """

    over: str
    maps: int
    inputs: int
    outputs: int
    bias: bool = True
    adapted: bool = False


def linear_maps(config: TransformerConfig) -> list[LinearMap]:
    """All linear maps of the transformer, in the order of its data flow."""
    from opensora.models.dit.embeddings import TIMESTEP_CHANNELS

    d, layers, bias = config.hidden_size, config.num_layers, config.attention_bias
    patch = config.patch_size**2
    out_channels = config.out_channels or config.in_channels
    return [
        LinearMap("patches", 1, patch * config.in_channels, d),  # a convolution whose stride is its kernel
        LinearMap("timestep", 1, TIMESTEP_CHANNELS, d),
        LinearMap("timestep", 1, d, d),
        LinearMap("timestep", 1, d, 6 * d),
        LinearMap("text", 1, config.caption_channels, d),
        LinearMap("text", 1, d, d),
        LinearMap("text", 2 * layers, config.cross_attention_dim, d, bias, True),  # keys, values of cross-attention
        LinearMap("blocks", 4 * layers, d, d, bias, True),  # queries, keys, values; queries of cross-attention
        LinearMap("blocks", 2 * layers, d, d, adapted=True),  # outputs of both attentions
        LinearMap("blocks", layers, d, 4 * d),
        LinearMap("blocks", layers, 4 * d, d),
        LinearMap("output", 1, d, patch * out_channels),
    ]


def parameter_count(config: TransformerConfig) -> int:
    """The number of the transformer's parameters."""
    maps = sum(m.maps * m.outputs * (m.inputs + m.bias) for m in linear_maps(config) if m.over != "timestep")
    return maps + float32_count(config)


def adapter_count(run: Run) -> int:
    """The number of parameters of the LoRA that the run trains."""
    return sum(m.maps * (run.lora_rank or 0) * (m.inputs + m.outputs) for m in linear_maps(run.config) if m.adapted)


def matrix_counts(config: TransformerConfig) -> tuple[int, int]:
    """The numbers of elements of all matrices that need not be float32, and of those that may be held in 8 bits.

    The latter are the matrices of the blocks and of the text's projection.
    """
    counts = {over: 0 for over in ("patches", "text", "blocks", "output")}
    for m in linear_maps(config):
        if m.over in counts:
            counts[m.over] += m.maps * m.inputs * m.outputs
    return sum(counts.values()), counts["text"] + counts["blocks"]


def float32_count(config: TransformerConfig) -> int:
    """The number of parameters that are float32 in every precision: `adaln_single` and the shift and scale tables.

    The transformer's norms have no parameters.
    """
    timestep = sum(m.maps * m.outputs * (m.inputs + m.bias) for m in linear_maps(config) if m.over == "timestep")
    return timestep + (6 * config.num_layers + 2) * config.hidden_size  # shift and scale tables


def weight_bytes(run: Run) -> int:
    """Bytes of the transformer's weights."""
    single = float32_count(run.config)
    return (parameter_count(run.config) - single) * run.bytes + single * BYTES["fp32"]


def trained_counts(run: Run) -> tuple[int, int]:
    """The numbers of trained parameters with 16 bits, which have float32 master weights, and with 32 bits."""
    count, single = adapter_count(run), 0
    if run.lora_rank is None:
        count, single = parameter_count(run.config), float32_count(run.config)
    half = 0 if run.precision == "fp32" else count - single
    return half, count - half


def gradient_bytes(run: Run) -> int:
    """Bytes of the gradients, which have the dtypes of the trained parameters."""
    half, single = trained_counts(run)
    return half * run.bytes + single * BYTES["fp32"]


def row_counts(run: Run) -> dict[str, int]:
    """The number of rows that each kind of linear map processes on one process.

    Patches are embedded before the sequence is split, and every process has the whole text. What does not depend on the
    text is computed once for both rows of guidance.
    """
    rows = run.batch * run.own_tokens
    return {
        "patches": run.batch_size * run.tokens,
        "timestep": run.batch_size if run.training else 1,  # all videos are at the same timestep
        "text": run.batch * run.max_sequence_length,
        "blocks": rows,
        "output": rows,
    }


def flops(run: Run) -> dict[str, float]:
    """Floating-point operations by kind; a multiply-add counts as two. Elementwise work and norms are not counted.

    A backward pass counts as two forward passes; for frozen linear maps, which need no gradients of their weights, as
    one, and for those before the first trained one as none. When sampling, the text's keys and values are computed once
    per prompt and listed separately, and the first block's self-attention is computed once for both rows of guidance.
    """
    config, rows = run.config, row_counts(run)
    inside = (2 if run.training else 0) + run.forwards  # passes through blocks, in units of a forward pass
    outside = 3 if run.training else 1
    linear: dict[str, float] = {
        over: sum(2 * rows[over] * m.maps * m.inputs * m.outputs for m in linear_maps(config) if m.over == over)
        for over in rows
    }
    adapters = sum(
        3 * 2 * rows[m.over] * m.maps * (run.lora_rank or 0) * (m.inputs + m.outputs)
        for m in linear_maps(config)
        if m.adapted
    )

    shared = (run.batch - run.batch_size) / run.batch  # of the rows, the part that block 0's self-attention leaves out
    linear["blocks"] -= shared * rows["blocks"] * 4 * 2 * config.hidden_size**2

    width = config.hidden_size // run.sp_size
    groups = [config.attention_groups(i) for i in range(config.num_layers)]
    sparse_blocks, n = sum(count > 1 for count in groups), max(groups)
    first_is_sparse = groups[0] > 1
    from opensora.models.dit.skiparse import Skiparse

    padded = run.tokens + Skiparse(n, group_skip=False).padding(run.tokens)
    dense = 4 * run.batch * run.tokens**2 * width  # scores, and their product with the values
    sparse = 4 * run.batch * padded**2 // n * width  # n groups of S / n tokens
    cross = 4 * run.batch * run.own_tokens * run.max_sequence_length * config.hidden_size

    text = {"linear maps of the text": outside * linear["text"]}
    maps = inside * linear["blocks"] + outside * (linear["patches"] + linear["timestep"] + linear["output"])
    if run.lora_rank is not None:
        outside_maps = linear["patches"] + linear["timestep"] + 2 * linear["output"]
        maps = (inside - 1) * linear["blocks"] + outside_maps + adapters
        text = {"linear maps of the text": linear["text"]}
    step = {
        "linear maps": maps,
        "self-attention, dense": inside * (config.num_layers - sparse_blocks - shared * (not first_is_sparse)) * dense,
        "self-attention, skiparse": inside * (sparse_blocks - shared * first_is_sparse) * sparse,
        "cross-attention": inside * config.num_layers * cross,
    }
    if run.training:
        return with_sum({**step, **text})
    return {**with_sum(step), "once per prompt: linear maps of the text": text["linear maps of the text"]}


def with_sum(values: Mapping[str, float]) -> dict[str, float]:
    return {**values, "sum": sum(values.values())}
