"""The tables of the command."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Optional

from opensora.config.commands import CostFlags
from opensora.config.families import PLAN
from opensora.cost_model.cards import CARDS, LINK_SHARE, Card, check_card, step_seconds
from opensora.cost_model.communication import traffic
from opensora.cost_model.compute import adapter_count, flops, parameter_count
from opensora.cost_model.footprint import memory
from opensora.cost_model.run import Run, load_config
from opensora.cost_model.stages import autoencoder, peak, stages, text_encoder

SIZES = ((1, 640, 640), (29, 352, 640), (93, 352, 640), (93, 640, 640))
TIGHT = 0.8  # MindSpore's FAQ leaves 20% of an NPU's memory to HCCL and the driver


def table(runs: Sequence[Run]) -> str:
    """A Markdown table with a column for each run; the runs differ only in their number of processes."""
    step = "one training step" if runs[0].training else "one denoising step"
    lines = [["tokens", *(f"{run.own_tokens:,}" for run in runs)]]
    for count, scale, unit in ((flops, 1e12, "TFLOP"), (traffic, 1e9, "GB sent"), (memory, 1e9, "GB of memory")):
        columns = [count(run) for run in runs]
        lines += [
            [f"{unit}: {name}", *(three_digits(column[name] / scale) for column in columns)] for name in columns[0]
        ]
    return _markdown(f"one process, {step}", runs, lines)


def card_table(runs: Sequence[Run], name: str, efficiency: float, steps: int) -> str:
    """Time and memory of the runs on a card as a Markdown table with a column for each run, below the card's figures.

    Raises:
        UserError: see `check_card`.
    """
    card = check_card(name, runs[0])
    figures = (
        f"{name}: {card.flops / 1e12:.0f} TFLOP/s in 16 bits, {card.memory / 1e9:.0f} GB; counted at "
        f"{efficiency:.0%} of this peak and {LINK_SHARE:.0%} of the links' rate, not measured"
    )
    columns = []
    for run in runs:
        seconds = step_seconds(run, card, efficiency)
        times = {f"seconds of a step: {kind}": _or_unknown(value) for kind, value in seconds.items()}
        if run.training:
            columns.append({**times, **_training_memory(run, card)})
        else:
            times[f"minutes of {steps} steps"] = _minutes(seconds, steps)
            columns.append({**times, **_sampling_memory(run, card)})
    lines = [[row, *(column[row] for column in columns)] for row in columns[0]]
    return f"{figures}\n\n{_markdown(f'one process, {name}', runs, lines)}"


def size_table() -> str:
    """Time and memory of the published model by size and card, with the default flags, as a Markdown table."""
    flags = CostFlags(PLAN)
    efficiency, steps = flags.efficiency, flags.num_sampling_steps
    minutes = f"minutes of {steps} steps"
    lines = [
        ["size", "card", "seconds of a step", minutes, f"{minutes}, 8 devices", "GB", "GB with `--save_memory`"],
        ["---", "---", *["---:"] * 5],
    ]
    for (frames, height, width), (name, card) in itertools.product(SIZES, CARDS.items()):
        one, eight = (
            Run(
                load_config(PLAN),
                frames,
                height,
                width,
                sp_size=devices,
                world_size=devices,
                precision=card.precisions[0],
                guidance_scale=7.5,
            )
            for devices in (1, 8)
        )
        seconds, shared = (step_seconds(run, card, efficiency) for run in (one, eight))
        of_stages = stages(one, card)
        lines.append(
            [
                f"{frames}x{height}x{width}",
                name,
                _or_unknown(seconds["computation"]),
                _minutes(seconds, steps),
                _minutes(shared, steps),
                _fit(peak(of_stages, save_memory=False), card),
                _fit(peak(of_stages, save_memory=True), card),
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _sampling_memory(run: Run, card: Card) -> dict[str, str]:
    """Rows of the memory by stage and of the whole run."""
    of_stages = stages(run, card)
    return {
        **{f"GB of memory: {stage}": three_digits(kinds["sum"] / 1e9) for stage, kinds in of_stages.items()},
        "GB of memory: all models loaded": _fit(peak(of_stages, save_memory=False), card),
        "GB of memory: --save_memory": _fit(peak(of_stages, save_memory=True), card),
    }


def _training_memory(run: Run, card: Card) -> dict[str, str]:
    """Rows of the memory of training, without and with the weights of the frozen models; EMA is not counted."""
    trained = memory(run)["sum"]
    frozen = text_encoder(run)["weights"] + autoencoder(run)["weights"]
    return {
        "GB of memory: trained transformer": _fit(trained, card),
        "GB of memory: with text encoder and autoencoder": _fit(trained + frozen, card),
    }


def _minutes(seconds: Mapping[str, Optional[float]], steps: int) -> str:
    known = [value for value in seconds.values() if value is not None]
    return _or_unknown(steps * sum(known) / 60 if len(known) == len(seconds) else None)


def _or_unknown(value: Optional[float]) -> str:
    return "not counted" if value is None else three_digits(value)


def _fit(used: float, card: Card) -> str:
    verdict = "fits" if used <= TIGHT * card.memory else "tight" if used <= card.memory else "too large"
    return f"{three_digits(used / 1e9)}, {verdict}"


def _markdown(title: str, runs: Sequence[Run], lines: Sequence[Sequence[str]]) -> str:
    head = [[title, *(f"sp_size {run.sp_size} of {run.world_size}" for run in runs)], ["---", *("---:" for _ in runs)]]
    return "\n".join(f"| {' | '.join(line)} |" for line in [*head, *lines])


def three_digits(value: float) -> str:
    """Three significant digits, but never fewer than the digits before the point."""
    digits = 3 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}" if value else "0"


def summary(run: Run, model: str) -> str:
    """The settings that all columns of the table share."""
    batch = f"batch {run.batch_size}" + (" x 2 for guidance" if run.batch > run.batch_size else "")
    kind = f"training, ZeRO stage {run.zero_stage}" if run.training else "sampling"
    if run.lora_rank is not None:
        kind = f"LoRA {kind}: rank {run.lora_rank}, {adapter_count(run):,} parameters"
    return (
        f"{model}: {parameter_count(run.config):,} parameters; {run.num_frames}x{run.height}x{run.width}: "
        f"latents {'x'.join(map(str, run.latents))}, {run.tokens:,} tokens; {batch}, "
        f"{run.max_sequence_length} text tokens, {run.precision}; "
        f"{kind}{', gradient checkpointing' if run.gradient_checkpointing else ''}"
    )
