"""Rewrites short prompts into detailed ones with a causal language model, which runs in a separate process."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Optional, Union

from tqdm import tqdm

from opensora.checkpoint.files import find_weights, open_state, read_config, resolve_path
from opensora.errors import UserError
from opensora.sample import refiner_process
from opensora.sample.child_process import converse
from opensora.utils.logs import logger

MAX_NEW_TOKENS = 512


def refine_prompts(
    folder: Union[str, Path],
    prompts: Sequence[str],
    seed: int = 1234,
    device: Optional[str] = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> dict[str, str]:
    """Maps each prompt to its refined prompt; see `refine_each`."""
    return dict(refine_each(folder, prompts, seed, device, max_new_tokens))


def refine_each(
    folder: Union[str, Path],
    prompts: Sequence[str],
    seed: int = 1234,
    device: Optional[str] = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> Iterator[tuple[str, str]]:
    """Yields each distinct prompt with its refined prompt, one line of text; an empty answer keeps the prompt.

    The model runs in a separate process, which exits after the last prompt.

    Args:
        folder: a causal language model with tokenizer and chat template, in the layout of the transformers library.
        seed: for models whose generation_config.json enables sampling.
        device: target to run on; None: Ascend if available, else CPU.
        max_new_tokens: maximum number of tokens per answer.

    Raises:
        UserError, OSError: mindnlp or the folder is unusable, or the process failed.
    """
    check_refiner(folder)
    prompts = list(dict.fromkeys(prompts))
    arguments = [
        "--caption_refiner",
        str(resolve_path(folder).resolve()),
        "--seed",
        str(seed),
        "--max_new_tokens",
        str(max_new_tokens),
    ] + (["--device", device] if device else [])
    answers = converse(refiner_process.__name__, arguments, prompts, len(prompts), "refiner")
    for answer, prompt in zip(tqdm(answers, desc="refining prompts", total=len(prompts), unit="prompt"), prompts):
        if not answer.strip():
            logger.warning(f"the refiner's answer to {prompt!r} is empty; the prompt is kept")
        yield prompt, " ".join((answer if answer.strip() else prompt).split())


def check_refiner(folder: Union[str, Path]) -> None:
    """Raises UserError or OSError for problems that can be found without loading the refiner."""
    folder = resolve_path(folder)
    architectures = read_config(folder).get("architectures") or []
    if not any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in architectures):
        raise UserError(
            f"{folder}/config.json describes {', '.join(architectures) or 'no architecture'}, "
            f"not a causal language model such as LlamaForCausalLM"
        )
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise FileNotFoundError(
            f"{folder} holds no tokenizer: add tokenizer.json (or tokenizer.model) and tokenizer_config.json"
        )
    if not _has_chat_template(folder):
        raise UserError(
            f"{folder}: its tokenizer has no chat template (chat_template in tokenizer_config.json, or "
            f"chat_template.jinja); the refiner must be a chat model"
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
