"""FLOPs, communication and memory of one step on one process, computed from the configuration without a run.

    python -m opensora.cost_model --model OpenSoraT2V_v1_3-2B/122 --height 352 --width 640 --sp_size 1 2 4 8

Nothing is measured. A step is one call of the transformer when sampling, and forward, backward and the optimizer when
training. Symbols: B batch, S tokens of a video, s tokens of one process, L tokens of the text, D width, p processes
that share a sequence (sp_size), N all processes.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Optional

from opensora.config.command_line import parse_flags, run_main
from opensora.config.commands import CostFlags
from opensora.config.device import PRECISIONS
from opensora.config.families import DEFAULT_VAE, DIT_PRESETS, VAES
from opensora.config.options import check_at_least_one, check_choice, from_mapping, option
from opensora.errors import UserError
from opensora.pipelines.sizes import check_size

if TYPE_CHECKING:
    from opensora.models.dit.config import OpenSoraConfig

_, TEMPORAL_STRIDE, SPATIAL_STRIDE = VAES[DEFAULT_VAE]
BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
ZERO_STAGES = (0, 1, 2, 3)


@dataclass(frozen=True)
class Run:
    """The run whose cost is computed. `batch_size` is the number of videos of one group in a step.

    Raises:
        UserError: an unsupported size, an sp_size that does not divide processes or heads, or contradictory settings.
    """

    config: OpenSoraConfig
    num_frames: int = option(93, "frames of a video, 4n+1")
    height: int = option(352, "frame height in pixels")
    width: int = option(640, "frame width in pixels")
    sp_size: int = 1
    world_size: int = 1
    precision: str = option("bf16", "dtype of weights and activations", choices=PRECISIONS)
    batch_size: int = option(1, "videos that a group shares in a step")
    max_sequence_length: int = option(512, "maximum number of text tokens")
    guidance_scale: float = option(1.0, "guidance scale; above 1 sampling runs every video twice")
    training: bool = option(False, "a training step instead of a denoising step")
    zero_stage: int = option(
        0,
        "in training shard over the processes 1: optimizer states, 2: gradients too, 3: weights too",
        choices=ZERO_STAGES,
    )
    gradient_checkpointing: bool = option(False, "in training recompute the blocks in the backward pass")

    def __post_init__(self):
        check_size(self.num_frames, self.height, self.width, TEMPORAL_STRIDE)
        check_at_least_one(self, "world_size", "batch_size", "max_sequence_length")
        check_choice("--precision", self.precision, PRECISIONS)
        check_choice("--zero_stage", self.zero_stage, ZERO_STAGES)
        if self.training and self.guidance_scale > 1:
            raise UserError(f"--guidance_scale {self.guidance_scale} is for sampling: leave it out, or --training")
        for name in ("zero_stage", "gradient_checkpointing"):
            if getattr(self, name) and not self.training:
                raise UserError(f"--{name} is for training: add --training, or leave it out")
        from opensora.device import Device
        from opensora.parallel.groups import sequence_group

        # The checks of a real run; on a CPU, making the group has no other effect.
        sequence_group(
            Device("CPU", 1, self.precision, world_size=self.world_size), self.sp_size, self.config.num_attention_heads
        )

    @property
    def latents(self) -> tuple[int, int, int, int]:
        """(C, T, H, W) of one video."""
        return (
            self.config.in_channels,
            (self.num_frames - 1) // TEMPORAL_STRIDE + 1,
            self.height // SPATIAL_STRIDE,
            self.width // SPATIAL_STRIDE,
        )

    @property
    def tokens(self) -> int:
        """S: patches of one video."""
        _, t, h, w = self.latents
        return t * (h // self.config.patch_size) * (w // self.config.patch_size)

    @property
    def own_tokens(self) -> int:
        """s: tokens of one process, with the zero padding that makes S divisible."""
        return -(-self.tokens // self.sp_size)

    @property
    def batch(self) -> int:
        """B: the batch of the transformer's input; guidance doubles it with the negative prompts."""
        return self.batch_size * (2 if self.guidance_scale > 1 else 1)

    @property
    def bytes(self) -> int:
        """Bytes of one element in the precision of the run."""
        return BYTES[self.precision]

    @property
    def forwards(self) -> int:
        """Forward passes through the blocks in a step: gradient checkpointing recomputes them in the backward pass."""
        return 2 if self.gradient_checkpointing else 1


class LinearMap(NamedTuple):
    """`maps` linear maps of one shape, applied to the rows of `over` (a key of `row_counts`)."""

    over: str
    maps: int
    inputs: int
    outputs: int
    bias: bool = True


def linear_maps(config: OpenSoraConfig) -> list[LinearMap]:
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
        LinearMap("text", 2 * layers, config.cross_attention_dim, d, bias),  # keys and values of cross-attention
        LinearMap("blocks", 4 * layers, d, d, bias),  # queries, keys, values; queries of cross-attention
        LinearMap("blocks", 2 * layers, d, d),  # outputs of both attentions
        LinearMap("blocks", layers, d, 4 * d),
        LinearMap("blocks", layers, 4 * d, d),
        LinearMap("output", 1, d, patch * out_channels),
    ]


def parameter_count(config: OpenSoraConfig) -> int:
    """The number of the transformer's parameters."""
    maps = sum(m.maps * m.outputs * (m.inputs + m.bias) for m in linear_maps(config))
    return maps + (6 * config.num_layers + 2) * config.hidden_size  # shift and scale tables


def row_counts(run: Run) -> dict[str, int]:
    """The number of rows that each kind of linear map processes on one process.

    Patches are embedded before the sequence is split, and every process has the whole text.
    """
    rows = run.batch * run.own_tokens
    return {
        "patches": run.batch * run.tokens,
        "timestep": run.batch,
        "text": run.batch * run.max_sequence_length,
        "blocks": rows,
        "output": rows,
    }


def flops(run: Run) -> dict[str, float]:
    """Floating-point operations by kind; a multiply-add counts as two. Elementwise work and norms are not counted.

    A backward pass counts as two forward passes. When sampling, the text's keys and values are computed once per
    prompt and listed separately.
    """
    config, rows = run.config, row_counts(run)
    inside = (2 if run.training else 0) + run.forwards  # passes through blocks, in units of a forward pass
    outside = 3 if run.training else 1
    linear = {
        over: sum(2 * rows[over] * m.maps * m.inputs * m.outputs for m in linear_maps(config) if m.over == over)
        for over in rows
    }

    width = config.hidden_size // run.sp_size
    sparse_blocks = sum(config.is_sparse(i) for i in range(config.num_layers))
    from opensora.models.dit.skiparse import Skiparse

    padded = run.tokens + Skiparse(config.sparse_n, group_skip=False).padding(run.tokens)
    dense = 4 * run.batch * run.tokens**2 * width  # scores, and their product with the values
    sparse = 4 * run.batch * padded**2 // config.sparse_n * width  # n groups of S / n tokens
    cross = 4 * run.batch * run.own_tokens * run.max_sequence_length * config.hidden_size

    text = {"linear maps of the text": outside * linear["text"]}
    step = {
        "linear maps": (
            inside * linear["blocks"] + outside * (linear["patches"] + linear["timestep"] + linear["output"])
        ),
        "self-attention, dense": inside * (config.num_layers - sparse_blocks) * dense,
        "self-attention, skiparse": inside * sparse_blocks * sparse,
        "cross-attention": inside * config.num_layers * cross,
    }
    if run.training:
        return with_sum({**step, **text})
    return {**with_sum(step), "once per prompt: linear maps of the text": text["linear maps of the text"]}


def traffic(run: Run) -> dict[str, float]:
    """Bytes that one process sends in a step, by collective.

    Sequence parallelism: every block exchanges q, k, v before attention and its output after it (Jacobs et al. 2023,
    DeepSpeed-Ulysses, section 3.2); each time a process sends all but the 1 / p that it keeps. Gradients: Rajbhandari
    et al. 2020 (ZeRO), section 7; stages 1 and 2 send as much as a ring all-reduce, stage 3 half as much again.
    Weights are the same on all N processes, also on those of one sequence, so gradients are reduced over all N. These
    are Ascend's collectives; on a CPU all of them are all-gathers, which send more.
    """
    config, p = run.config, run.sp_size
    exchanges = config.num_layers * (run.forwards + run.training)  # the backward pass exchanges gradients
    tokens = run.batch * run.own_tokens * config.hidden_size * run.bytes
    exchanged = exchanges * tokens * (p - 1) / p
    out_channels = config.out_channels or config.in_channels
    prediction = run.batch * run.own_tokens * config.patch_size**2 * out_channels * run.bytes
    result = {
        "all-to-all of q, k, v": 3 * exchanged,
        "all-to-all of attention's output": exchanged,
        # In the backward pass each member gathers all members' gradients of the whole prediction.
        "all-gather of the prediction": (p - 1) * prediction * (1 + p if run.training else 1),
    }
    if run.training:
        gradients = parameter_count(config) * run.bytes * (run.world_size - 1) / run.world_size
        if run.zero_stage == 0:
            result["all-reduce of gradients"] = 2 * gradients
        else:
            result["reduce-scatter of gradients"] = gradients
            result["all-gather of weights"] = gradients * (2 if run.zero_stage == 3 else 1)
    return with_sum(result)


def memory(run: Run) -> dict[str, float]:
    """Bytes of the transformer on one process.

    Weights, gradients and optimizer states: Rajbhandari et al. 2020 (ZeRO), section 5 and figure 1. With 16-bit weights
    Adam has 12 bytes per parameter, 4 of them float32 master weights; float32 weights need no master weights.
    """
    config, count = run.config, parameter_count(run.config)
    shards = [run.world_size if run.zero_stage >= stage else 1 for stage in ZERO_STAGES]
    result = {"weights": count * run.bytes / shards[3]}
    if run.training:
        result["gradients"] = count * run.bytes / shards[2]
        result["float32 master weights"] = 0 if run.precision == "fp32" else 4 * count / shards[1]
        result["optimizer states"] = 8 * count / shards[1]
    text = run.batch * run.max_sequence_length * config.hidden_size * run.bytes
    result["text keys and values"] = 2 * config.num_layers * text
    result["activations (estimate)"] = activations(run)
    return with_sum(result)


def activations(run: Run) -> float:
    """An estimate of the bytes of activations, as a number of tensors (B, s, D) that exist at the same time.

    Sampling: the maximum is in the feed-forward, with the block's input, the normalized input, and the hidden layer
    (4 D) before and after GELU; or the embedding of the whole sequence in two layouts, if that is larger. Training: the
    tensors that a block keeps for its gradient (counted as in Korthikanti et al. 2022, section 4.1). In the run's
    precision there are 19: the inputs of both attentions, of their output maps and of the feed-forward (5),
    self-attention's q, k, v and cross-attention's q (4), both gated results (2), the hidden layer before and after GELU
    (8). In float32 there are 4: the centered and the normalized input of both norms. With gradient checkpointing every
    block keeps its input, and one block at a time the rest. Attention scores, which a fused kernel does not store, and
    elementwise temporaries are not counted.
    """
    elements = run.batch * run.own_tokens * run.config.hidden_size
    embedding = 2 * run.batch * run.tokens * run.config.hidden_size * run.bytes
    if not run.training:
        return max(10 * elements * run.bytes, embedding)
    block = elements * (19 * run.bytes + 4 * BYTES["fp32"])
    if run.gradient_checkpointing:
        return run.config.num_layers * elements * run.bytes + block
    return run.config.num_layers * block


def with_sum(values: Mapping[str, float]) -> dict[str, float]:
    return {**values, "sum": sum(values.values())}


def table(runs: Sequence[Run]) -> str:
    """A Markdown table with a column for each run; the runs differ only in their number of processes."""
    first = runs[0]
    lines = [
        [
            "one process, one training step" if first.training else "one process, one denoising step",
            *(f"sp_size {run.sp_size} of {run.world_size}" for run in runs),
        ],
        ["---", *("---:" for _ in runs)],
        ["tokens", *(f"{run.own_tokens:,}" for run in runs)],
    ]
    for count, scale, unit in ((flops, 1e12, "TFLOP"), (traffic, 1e9, "GB sent"), (memory, 1e9, "GB of memory")):
        columns = [count(run) for run in runs]
        lines += [
            [f"{unit}: {name}", *(three_digits(column[name] / scale) for column in columns)] for name in columns[0]
        ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def three_digits(value: float) -> str:
    """Three significant digits, but never fewer than the digits before the point."""
    digits = 3 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}" if value else "0"


def summary(run: Run, model: str) -> str:
    """The settings that all columns of the table share."""
    batch = f"batch {run.batch_size}" + (" x 2 for guidance" if run.batch > run.batch_size else "")
    kind = f"training, ZeRO stage {run.zero_stage}" if run.training else "sampling"
    return (
        f"{model}: {parameter_count(run.config):,} parameters; {run.num_frames}x{run.height}x{run.width}: "
        f"latents {'x'.join(map(str, run.latents))}, {run.tokens:,} tokens; {batch}, "
        f"{run.max_sequence_length} text tokens, {run.precision}; "
        f"{kind}{', gradient checkpointing' if run.gradient_checkpointing else ''}"
    )


def load_config(model: str) -> OpenSoraConfig:
    """The configuration of a preset, or of the config.json at a path.

    Raises:
        UserError: neither of them, or a config.json of another model.
    """
    from opensora.checkpoint.files import read_config
    from opensora.models.dit.config import PRESETS, OpenSoraConfig

    if model in PRESETS:
        return OpenSoraConfig.from_dict(PRESETS[model])
    if not Path(model).exists():
        raise UserError(f"--model {model}: neither a folder nor one of {', '.join(DIT_PRESETS)}")
    try:
        return OpenSoraConfig.from_dict(read_config(model))
    except ValueError as error:
        raise UserError(f"--model {model}: {error}") from error


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    return parse_flags("Computes work, traffic and memory of one step on one process.", (CostFlags, Run), argv)


def main() -> None:
    args = vars(parse_args())
    flags = from_mapping(CostFlags, args)
    config = load_config(flags.model)
    runs = [
        from_mapping(
            Run,
            args,
            config=config,
            sp_size=sp_size,
            world_size=max(1, sp_size) if flags.world_size is None else flags.world_size,
        )
        for sp_size in flags.sp_size
    ]
    print(summary(runs[0], flags.model), table(runs), sep="\n\n")


if __name__ == "__main__":
    run_main(main)
