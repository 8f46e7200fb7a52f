"""opensora refine: rewrites short prompts into detailed ones with a causal language model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from tqdm import tqdm

from opensora.config.command_line import parse_flags
from opensora.config.commands import PUBLISHED_REFINER, RefineOptions
from opensora.config.options import from_mapping
from opensora.utils.files import atomic_write

PUBLISHED_WEIGHTS = PUBLISHED_REFINER.rpartition("/")[0]  # name on Hugging Face, and of the folder


def parse_args(argv: Optional[Sequence[str]] = None) -> RefineOptions:
    args = parse_flags("Rewrites short prompts into detailed ones.", (RefineOptions,), argv)
    return from_mapping(RefineOptions, vars(args))


def main(argv: Optional[Sequence[str]] = None) -> None:
    args = parse_args(argv)
    if args.caption_refiner == PUBLISHED_REFINER and not Path(PUBLISHED_REFINER).is_dir():
        raise FileNotFoundError(
            f"{PUBLISHED_REFINER}: no such folder; fetch the published refiner with huggingface-cli download "
            f"{PUBLISHED_WEIGHTS} --include 'prompt_refiner/*' --local-dir {PUBLISHED_WEIGHTS}, or give the folder of "
            f"another language model with --caption_refiner"
        )
    from opensora.sample.prompt_files import read_prompts  # imports the video reader
    from opensora.sample.refiner import refine_each

    prompts = read_prompts(args.prompt or [args.text_prompt])
    refined = {}
    for prompt, wording in refine_each(args.caption_refiner, prompts, args.seed, args.device, args.max_new_tokens):
        refined[prompt] = wording
        tqdm.write(f"{prompt} -> {wording}")
    if args.output:
        with atomic_write(args.output) as temporary:
            temporary.write_text("".join(f"{refined[prompt]}\n" for prompt in prompts), encoding="utf-8")
        print(f"refined prompts in {args.output}")
