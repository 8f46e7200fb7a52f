"""What a run costs one process, counted before it starts: work, traffic and memory of one step.

    python -m opensora.cost_model --model OpenSoraT2V_v1_3-2B/122 --height 352 --width 640 --sp_size 1 2 4 8

Everything follows from the configuration; nothing is measured. A step is one call of the transformer when sampling,
forward and backward and the optimizer when training. Letters: B batch, S tokens of a video, s those of one process,
L tokens of the text, D width, p processes that share a sequence, N all processes.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Optional

from opensora.config.commands import CostFlags
from opensora.config.device import PRECISIONS
from opensora.config.families import DEFAULT_VAE, DIT_PRESETS, VAES
from opensora.config.options import check_at_least_one, check_choice, from_mapping, option
from opensora.errors import UserError
from opensora.pipelines.sizes import check_size
from opensora.utils.cli import parse_flags, run_main

if TYPE_CHECKING:
    from opensora.models.dit.config import OpenSoraConfig

_, TEMPORAL_STRIDE, SPATIAL_STRIDE = VAES[DEFAULT_VAE]
BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
ZERO_STAGES = (0, 1, 2, 3)


@dataclass(frozen=True)
class Run:
    """What is run, and on how many processes. `batch_size` counts the videos that one group shares in a step.

    Raises:
        UserError: a size the model cannot make, processes or heads that do not divide, or settings that contradict.
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

        # The checks of a real run; on a CPU making the group does nothing else.
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
        """S: the patches of one video."""
        _, t, h, w = self.latents
        return t * (h // self.config.patch_size) * (w // self.config.patch_size)

    @property
    def own_tokens(self) -> int:
        """s: the tokens of one process, with the zeros behind the last that make them divide."""
        return -(-self.tokens // self.sp_size)

    @property
    def batch(self) -> int:
        """B: the rows of the transformer's input; guidance adds one with the negative prompt for each."""
        return self.batch_size * (2 if self.guidance_scale > 1 else 1)

    @property
    def bytes(self) -> int:
        """Of one number in the precision of the run."""
        return BYTES[self.precision]

    @property
    def forwards(self) -> int:
        """How often a step runs the blocks forward: checkpointing runs them again on the way back."""
        return 2 if self.gradient_checkpointing else 1


class LinearMap(NamedTuple):
    """`count` linear maps of one shape, applied to the rows of `over` (a key of `row_counts`)."""

    over: str
    count: int
    inputs: int
    outputs: int
    bias: bool = True


def linear_maps(config: OpenSoraConfig) -> list[LinearMap]:
    """All linear maps of the transformer, in the order of its data flow."""
    from opensora.models.dit.embeddings import TIMESTEP_CHANNELS

    d, layers, bias = config.hidden_size, config.num_layers, config.attention_bias
    patch = config.patch_size**2
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
        LinearMap("output", 1, d, patch * config.out_channels),
    ]


def parameter_count(config: OpenSoraConfig) -> int:
    """How many numbers the transformer's weights are."""
    maps = sum(m.count * m.outputs * (m.inputs + m.bias) for m in linear_maps(config))
    return maps + (6 * config.num_layers + 2) * config.hidden_size  # the tables of shifts and scales


def row_counts(run: Run) -> dict[str, int]:
    """Rows that one process puts through each kind of linear map.

    Patches are embedded before the sequence is split, and the text is whole on every process.
    """
    own = run.batch * run.own_tokens
    return {
        "patches": run.batch * run.tokens,
        "timestep": run.batch,
        "text": run.batch * run.max_sequence_length,
        "blocks": own,
        "output": own,
    }


def flops(run: Run) -> dict[str, float]:
    """Floating-point operations by kind; a multiply-add is two. Elementwise work and norms are left out.

    A backward pass counts as twice the forward one. When sampling, the text's keys and values are made once per
    prompt: they stand by themselves.
    """
    config, rows = run.config, row_counts(run)
    inside = (2 if run.training else 0) + run.forwards  # passes through blocks, in units of a forward one
    outside = 3 if run.training else 1
    linear = {
        over: sum(2 * rows[over] * m.count * m.inputs * m.outputs for m in linear_maps(config) if m.over == over)
        for over in rows
    }

    own_width = config.hidden_size // run.sp_size
    sparse_blocks = sum(config.is_sparse(i) for i in range(config.num_layers))
    from opensora.models.dit.skiparse import Skiparse

    padded = run.tokens + Skiparse(config.sparse_n, group_skip=False).padding(run.tokens)
    dense = 4 * run.batch * run.tokens**2 * own_width  # scores, and their product with the values
    sparse = 4 * run.batch * padded**2 // config.sparse_n * own_width  # n groups of S / n tokens
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

    Sequence parallelism: every block exchanges q, k, v before attention and its result after (Jacobs et al. 2023,
    DeepSpeed-Ulysses, section 3.2), each time all but the 1 / p that stays. Gradients: Rajbhandari et al. 2020 (ZeRO),
    section 7; stages 1 and 2 move what a ring all-reduce moves, stage 3 half as much again. Weights are the same on all
    N processes, those of one sequence too, so gradients are reduced over all N. These are Ascend's collectives; on a
    CPU, where all of them are all-gathers, more is sent.
    """
    config, p = run.config, run.sp_size
    exchanges = config.num_layers * (run.forwards + run.training)  # the way back exchanges gradients
    tokens = run.batch * run.own_tokens * config.hidden_size * run.bytes
    exchanged = exchanges * tokens * (p - 1) / p
    piece = run.batch * run.own_tokens * config.patch_size**2 * config.out_channels * run.bytes
    result = {
        "all-to-all of q, k, v": 3 * exchanged,
        "all-to-all of attention's output": exchanged,
        # On the way back each member gathers the gradients that all have of the whole prediction.
        "all-gather of the prediction": (p - 1) * piece * (1 + p if run.training else 1),
    }
    if run.training:
        share = parameter_count(config) * run.bytes * (run.world_size - 1) / run.world_size
        if run.zero_stage == 0:
            result["all-reduce of gradients"] = 2 * share
        else:
            result["reduce-scatter of gradients"] = share
            result["all-gather of weights"] = share * (2 if run.zero_stage == 3 else 1)
    return with_sum(result)


def memory(run: Run) -> dict[str, float]:
    """Bytes on one process, of the transformer alone.

    Weights, gradients and optimizer states: Rajbhandari et al. 2020 (ZeRO), section 5 and figure 1. In 16 bits Adam has
    12 bytes a parameter, 4 of them float32 master weights; in float32 the weights are their own master.
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
    """An estimate of the bytes of activations: the tensors of the size of the tokens, (B, s, D), that live at once.

    Sampling: in the feed-forward, where most are alive, the block's input and the normalised one, and the hidden layer
    (4 D) before and after GELU; or the embedding of the whole sequence in two layouts, where that is more. Training:
    what a block keeps for its gradient (counted as Korthikanti et al. 2022, section 4.1). In the run's precision that
    is 19: the inputs of both attentions, of their output maps and of the feed-forward (5), self-attention's q, k, v and
    cross-attention's q (4), both gated results (2), the hidden layer before and after GELU (8). In float32 it is 4: the
    centred and the normalised input of both norms. With checkpointing every block keeps its input, and one at a time
    the rest. Attention scores, which a fused kernel never has whole, and elementwise temporaries are not counted.
    """
    numbers = run.batch * run.own_tokens * run.config.hidden_size
    embedding = 2 * run.batch * run.tokens * run.config.hidden_size * run.bytes
    if not run.training:
        return max(10 * numbers * run.bytes, embedding)
    block = numbers * (19 * run.bytes + 4 * BYTES["fp32"])
    if run.gradient_checkpointing:
        return run.config.num_layers * numbers * run.bytes + block
    return run.config.num_layers * block


def with_sum(parts: dict[str, float]) -> dict[str, float]:
    return {**parts, "sum": sum(parts.values())}


def table(runs: Sequence[Run]) -> str:
    """The figures of runs that differ in their processes alone, a column each, in Markdown."""
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
    """Three significant digits, never fewer than the whole ones."""
    digits = 3 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}" if value else "0"


def summary(run: Run, model: str) -> str:
    """What all columns of the table share."""
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
        UserError: neither, or a config.json of another model.
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
