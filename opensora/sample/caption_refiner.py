"""Rewrites short prompts into detailed ones with a causal language model:

    python opensora/sample/caption_refiner.py [--caption_refiner DIR] [--prompt "a cat" "a dog"] [--output FILE.txt]

Without flags the published refiner rewrites the prompts of examples/sora.txt.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Optional, Union

from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # runs from a fresh clone


from opensora import device as devices  # noqa: E402
from opensora.checkpoint.files import find_weights, open_state, read_config, resolve_path  # noqa: E402
from opensora.errors import UserError  # noqa: E402
from opensora.sample import refiner_process  # noqa: E402
from opensora.sample.options import read_prompts  # noqa: E402
from opensora.utils.cli import CommandParser, run_main, seed  # noqa: E402
from opensora.utils.files import atomic_write  # noqa: E402

MAX_NEW_TOKENS = 512
PUBLISHED_WEIGHTS = "LanguageBind/Open-Sora-Plan-v1.3.0"  # name on Hugging Face, and of the folder
PUBLISHED_REFINER = f"{PUBLISHED_WEIGHTS}/prompt_refiner"


def refine_prompts(
    folder: Union[str, Path],
    prompts: Sequence[str],
    seed: int = 1234,
    device: Optional[str] = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> dict[str, str]:
    """Prompt -> refined prompt; see `refine_each`."""
    return dict(refine_each(folder, prompts, seed, device, max_new_tokens))


def refine_each(
    folder: Union[str, Path],
    prompts: Sequence[str],
    seed: int = 1234,
    device: Optional[str] = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> Iterator[tuple[str, str]]:
    """Yields each different prompt with its refined wording, one line of text; an empty answer leaves it as it was.

    The model runs in a process of its own, which ends with the last prompt.

    Args:
        folder: a causal language model with tokenizer and chat template, in the layout of the transformers library.
        seed: for models whose generation_config.json says to sample.
        device: target to run on; None: Ascend where one is present, else CPU.
        max_new_tokens: longest answer.

    Raises:
        UserError, OSError: mindnlp or the folder cannot be used, or the process broke down.
    """
    check_refiner(folder)
    prompts = list(dict.fromkeys(prompts))
    command = [
        sys.executable,
        "-m",
        refiner_process.__name__,
        "--caption_refiner",
        str(resolve_path(folder).resolve()),
        "--seed",
        str(seed),
        "--max_new_tokens",
        str(max_new_tokens),
    ] + (["--device", device] if device else [])
    answers = tqdm(_converse(command, prompts), desc="refining prompts", total=len(prompts), unit="prompt")
    for answer, prompt in zip(answers, prompts):
        if not answer.strip():
            tqdm.write(f"note: the refiner's answer to {prompt!r} is empty; the prompt stays as it is", file=sys.stderr)
        yield prompt, " ".join((answer if answer.strip() else prompt).split())


def check_refiner(folder: Union[str, Path]) -> None:
    """Raises UserError or OSError for what would stop the refiner, as far as that shows without loading it."""
    folder = resolve_path(folder)
    architectures = read_config(folder).get("architectures") or []
    if not any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in architectures):
        raise UserError(
            f"{folder}/config.json describes {', '.join(architectures) or 'no architecture'}, "
            f"not a causal language model such as LlamaForCausalLM"
        )
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise FileNotFoundError(
            f"{folder} holds no tokenizer: tokenizer.json (or tokenizer.model) and "
            f"tokenizer_config.json should lie there"
        )
    if not _has_chat_template(folder):
        raise UserError(
            f"{folder}: its tokenizer has no chat template (chat_template in tokenizer_config.json, or "
            f"chat_template.jinja); the refiner is a model tuned for chats"
        )
    weights = find_weights(folder)
    if ".safetensors" not in weights.name:
        raise UserError(f"{weights}: the refiner's weights are read from .safetensors files only")
    open_state(weights)
    if importlib.util.find_spec("mindnlp") is None:
        raise UserError(refiner_process.MINDNLP_NEEDED)


def _has_chat_template(folder: Path) -> bool:
    config = folder / "tokenizer_config.json"
    return (folder / "chat_template.jinja").is_file() or (config.is_file() and "chat_template" in read_config(config))


def _converse(command: Sequence[str], prompts: Sequence[str]) -> Iterator[str]:
    """Runs the refiner's process; yields its answers as they come. It has ended when they end."""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as request:
        json.dump(prompts, request)
        request.seek(0)
        process = subprocess.Popen(command, cwd=ROOT, stdin=request, stdout=subprocess.PIPE, encoding="utf-8")
    answered = 0
    try:
        for line in process.stdout:
            message = json.loads(line)
            if "error" in message:
                raise UserError(message["error"])
            answered += 1
            yield message["answer"]
        code = process.wait()
        if answered < len(prompts):
            raise ChildProcessError(
                f"the refiner's process ended with exit code {code} after {answered} of "
                f"{len(prompts)} prompts" + (" (killed: out of memory?)" if code == -9 else "")
            )
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def parse_args() -> argparse.Namespace:
    parser = CommandParser(description="Prompts -> prompts with more detail.")
    parser.add_argument(
        "--caption_refiner", default=PUBLISHED_REFINER, help="folder of a causal language model with its tokenizer"
    )
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument("--prompt", nargs="+", help="prompts; default: those of --text_prompt")
    prompts.add_argument(
        "--text_prompt",
        default=str(ROOT / "examples/sora.txt"),
        help="a .txt file with one prompt per line, or a .csv file",
    )
    parser.add_argument("--output", help="text file for the refined prompts, one per line; default: only print them")
    parser.add_argument("--max_new_tokens", type=int, default=MAX_NEW_TOKENS, help="longest answer in tokens")
    parser.add_argument("--device", choices=devices.TARGETS, help="default: Ascend where one is present, else CPU")
    parser.add_argument("--seed", type=seed, default=1234, help="for models that sample their answers")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
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


if __name__ == "__main__":
    run_main(main)
