"""opensora fuse-lora and extract-lora: LoRAs into the weights of a model, and out of two models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from opensora.config.command_line import parse_flags
from opensora.config.commands import ExtractLoRAOptions, FuseLoRAOptions
from opensora.config.options import from_mapping


def fuse(argv: Optional[Sequence[str]] = None) -> None:
    args = parse_flags("Adds LoRAs to the weights of a model, tensor by tensor.", (FuseLoRAOptions,), argv)
    from opensora.checkpoint.lora.fuse import fuse_loras  # imports numpy

    count = fuse_loras(args.model_path, args.lora, args.output)
    print(f"{args.output}: {count} layers were changed")


def extract(argv: Optional[Sequence[str]] = None) -> None:
    args = parse_flags("Approximates the difference of two models by a LoRA.", (ExtractLoRAOptions,), argv)
    from_mapping(ExtractLoRAOptions, vars(args))
    from opensora.checkpoint.lora.extract import Truncation, extract_lora  # imports numpy

    truncation = Truncation(args.rank) if args.energy is None else Truncation(energy=args.energy)
    summary = extract_lora(args.base, args.tuned, truncation, args.output)
    print(
        f"{args.output}: {summary.layers} layers of rank {summary.lowest_rank} to {summary.highest_rank}, "
        f"{Path(args.output).stat().st_size / 1e6:.3g} MB; "
        f"holds {100 * summary.energy:.4g} % of the squared norm of the differences"
    )
