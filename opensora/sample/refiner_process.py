"""The process the prompt refiner runs in; `refiner.refine_each` starts it and speaks with it.

It is a process of its own because mindnlp takes the place of `torch` in the whole process that imports it, and because
all memory of the language model is free again when it ends. A json list of prompts comes in on stdin; on stdout goes
one line {"answer": text} for each, or {"error": text} as the last line.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import TextIO

import numpy as np

from opensora import device
from opensora.errors import UserError
from opensora.utils import logs
from opensora.utils.cli import CommandParser

MINDNLP_NEEDED = "the refiner needs mindnlp: pip install -r requirements-refiner.txt, or the extra [refiner]"

# The published refiner was tuned and is run with exactly these words, the stray quotation marks and line ends included.
SYSTEM = "You are a caption refiner."
INSTRUCTION = (
    '\nRefine the sentence: "{}" to contain subject description, action, scene description. " "(Optional: camera '
    'language, light and shadow, atmosphere) and conceive some additional actions to make the sentence more dynamic. " '
    '"Make sure it is a fluent sentence, not nonsense.\n'
)

TORCH_DEVICES = {"Ascend": "npu", "GPU": "cuda", "CPU": "cpu"}  # what mindnlp's torch calls MindSpore's targets


def parse_args() -> argparse.Namespace:
    parser = CommandParser(description="Answers the prompts on stdin; see caption_refiner.py.")
    parser.add_argument("--caption_refiner", required=True, help="folder of a causal language model")
    parser.add_argument("--max_new_tokens", type=int, required=True, help="longest answer in tokens")
    device.add_arguments(parser)
    return parser.parse_args()


def answer_prompts(args: argparse.Namespace, prompts: Sequence[str]) -> Iterator[str]:
    """The model's answer to each prompt. It depends on the prompt and the seed, not on the prompts before.

    Raises:
        UserError, OSError: mindnlp, the tokenizer or the weights cannot be used.
    """
    place = device.setup(args)  # mindnlp looks at the target when it is imported
    try:
        import mindnlp  # noqa: F401  from here on `torch` is mindnlp's
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise UserError(f"{MINDNLP_NEEDED} (importing it failed: {error})") from error

    local = {"local_files_only": True, "trust_remote_code": False}
    tokenizer = AutoTokenizer.from_pretrained(args.caption_refiner, **local)
    model, report = AutoModelForCausalLM.from_pretrained(
        args.caption_refiner, ms_dtype=place.dtype, use_safetensors=True, output_loading_info=True, **local
    )
    if report["missing_keys"]:
        raise UserError(f"{args.caption_refiner}: the weights lack {sorted(report['missing_keys'])[0]}")
    model = model.to(TORCH_DEVICES[place.target]).eval()

    for prompt in prompts:
        seed_sampling(torch, args.seed)
        # As published, the rendered chat is tokenized like any text: a tokenizer that puts BOS first does it here too.
        inputs = tokenizer(render_chat(tokenizer, prompt), return_tensors="pt").to(model.device)
        output = model.generate(
            input_ids=inputs.input_ids,
            attention_mask=inputs.attention_mask,
            max_new_tokens=args.max_new_tokens,
            pad_token_id=tokenizer.eos_token_id,
        )
        yield tokenizer.decode(output[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)


def render_chat(tokenizer, prompt: str) -> str:
    """The text that asks the model to refine `prompt`, in the tokenizer's chat format."""
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": INSTRUCTION.format(prompt)}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def seed_sampling(torch, seed: int) -> None:
    """Lets a seed decide what models whose generation_config.json says to sample draw.

    The `torch.multinomial` of mindnlp 0.5.1 takes its numbers on a CPU from UniformReal(0, 0), which no seed reaches.
    """
    rng = np.random.default_rng(seed)

    def multinomial(probabilities, num_samples):
        drawn = draw(rng, probabilities.float().cpu().numpy(), num_samples)
        return torch.tensor(drawn).to(probabilities.device)

    torch.multinomial = multinomial


def draw(rng: np.random.Generator, weights: np.ndarray, count: int) -> np.ndarray:
    """Indices (..., count) into the last axis of `weights`, drawn without replacement by these weights.

    Of clocks that ring at random with such rates, the first to ring are such a sample (Efraimidis and Spirakis 2006).
    """
    with np.errstate(divide="ignore"):
        times = rng.exponential(size=weights.shape) / weights
    return np.argsort(times, axis=-1)[..., :count]


def claim_stdout() -> TextIO:
    """The stdout of this process, for answers only: what libraries print goes to stderr from now on."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return answers


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches the parent too, which says what is to be said
    logs.configure()
    args = parse_args()
    prompts = json.load(sys.stdin)
    with claim_stdout() as answers:
        try:
            for answer in answer_prompts(args, prompts):
                print(json.dumps({"answer": answer}), file=answers, flush=True)
        except (ValueError, OSError) as error:
            print(json.dumps({"error": str(error)}), file=answers, flush=True)


if __name__ == "__main__":
    main()
