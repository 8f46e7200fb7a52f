"""Rewrites short prompts into detailed ones with a causal language model, which runs in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Optional, Union

from tqdm import tqdm

from opensora.checkpoint.files import find_weights, open_state, read_config, resolve_path
from opensora.errors import UserError
from opensora.sample import refiner_process
from opensora.utils.logs import logger

MAX_NEW_TOKENS = 512


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
            logger.warning(f"the refiner's answer to {prompt!r} is empty; the prompt stays as it is")
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
        # The process imports the same opensora, also one that is found through the current folder.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)}
        process = subprocess.Popen(command, env=environment, stdin=request, stdout=subprocess.PIPE, encoding="utf-8")
    assert process.stdout is not None  # it is a pipe
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
