"""opensora refine: rewrites short prompts into detailed ones with a causal language model."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from tqdm import tqdm

import opensora
from opensora import device as devices
from opensora.errors import UserError
from opensora.sample.options import read_prompts
from opensora.sample.refiner import MAX_NEW_TOKENS, refine_each
from opensora.utils.cli import CommandParser, seed
from opensora.utils.files import atomic_write

PUBLISHED_WEIGHTS = "LanguageBind/Open-Sora-Plan-v1.3.0"  # name on Hugging Face, and of the folder
PUBLISHED_REFINER = f"{PUBLISHED_WEIGHTS}/prompt_refiner"
EXAMPLE_PROMPTS = Path(opensora.__file__).resolve().parents[1] / "examples/sora.txt"  # in a clone


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = CommandParser(description="Prompts -> prompts with more detail.")
    parser.add_argument(
        "--caption_refiner", default=PUBLISHED_REFINER, help="folder of a causal language model with its tokenizer"
    )
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument("--prompt", nargs="+", help="prompts; default: those of --text_prompt")
    prompts.add_argument(
        "--text_prompt", default=str(EXAMPLE_PROMPTS), help="a .txt file with one prompt per line, or a .csv file"
    )
    parser.add_argument("--output", help="text file for the refined prompts, one per line; default: only print them")
    parser.add_argument("--max_new_tokens", type=int, default=MAX_NEW_TOKENS, help="longest answer in tokens")
    parser.add_argument("--device", choices=devices.TARGETS, help="default: Ascend where one is present, else CPU")
    parser.add_argument("--seed", type=seed, default=1234, help="for models that sample their answers")
    return parser.parse_args(argv)


def main(argv: Optional[Sequence[str]] = None) -> None:
    args = parse_args(argv)
    if args.max_new_tokens < 1:
        raise UserError(f"--max_new_tokens must be 1 or more, not {args.max_new_tokens}")
    if args.output and Path(args.output).is_dir():
        raise UserError(f"--output {args.output}: is a folder; name a file")
    if args.caption_refiner == PUBLISHED_REFINER and not Path(PUBLISHED_REFINER).is_dir():
        raise FileNotFoundError(
            f"{PUBLISHED_REFINER}: no such folder; fetch the published refiner with huggingface-cli download "
            f"{PUBLISHED_WEIGHTS} --include 'prompt_refiner/*' --local-dir {PUBLISHED_WEIGHTS}, or give the folder of "
            f"another language model with --caption_refiner"
        )
    prompts = read_prompts(args.prompt or [args.text_prompt])
    refined = {}
    for prompt, wording in refine_each(args.caption_refiner, prompts, args.seed, args.device, args.max_new_tokens):
        refined[prompt] = wording
        tqdm.write(f"{prompt} -> {wording}")
    if args.output:
        with atomic_write(args.output) as temporary:
            temporary.write_text("".join(f"{refined[prompt]}\n" for prompt in prompts), encoding="utf-8")
        print(f"refined prompts in {args.output}")
