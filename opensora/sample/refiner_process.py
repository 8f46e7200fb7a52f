"""The process of the prompt refiner; `refiner.refine_each` starts it and communicates with it.

It is a separate process because mindnlp replaces `torch` in the process that imports it, and because its exit frees all
memory of the language model. It reads a JSON list of prompts and answers each with a text.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import Optional

import numpy as np

from opensora.config.command_line import parse_flags
from opensora.config.commands import RefinerProcessOptions
from opensora.config.device import DeviceOptions
from opensora.errors import UserError
from opensora.sample.child_process import answer_stdin

MINDNLP_NEEDED = "the refiner needs mindnlp: pip install -r requirements-refiner.txt, or the extra [refiner]"

# The published refiner was tuned and is run with exactly this text, stray quotation marks and line ends included.
SYSTEM = "You are a caption refiner."
INSTRUCTION = (
    '\nRefine the sentence: "{}" to contain subject description, action, scene description. " "(Optional: camera '
    'language, light and shadow, atmosphere) and conceive some additional actions to make the sentence more dynamic. " '
    '"Make sure it is a fluent sentence, not nonsense.\n'
)

TORCH_DEVICES = {"Ascend": "npu", "GPU": "cuda", "CPU": "cpu"}  # MindSpore target -> device name in mindnlp's torch


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    return parse_flags(
        "Answers the prompts on stdin; see caption_refiner.py.", (RefinerProcessOptions, DeviceOptions), argv
    )


def answer_prompts(args: argparse.Namespace, prompts: Sequence[str]) -> Iterator[str]:
    """Yields the model's answer to each prompt; it depends only on the prompt and the seed, not on earlier prompts.

    Raises:
        UserError, OSError: mindnlp, the tokenizer or the weights are unusable.
    """
    from opensora import device

    place = device.setup(args)  # before mindnlp, which reads the target at import
    try:
        import mindnlp  # noqa: F401  replaces `torch`
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
        # As published, the rendered chat is tokenized as plain text, so that a tokenizer may add a second BOS token.
        inputs = tokenizer(render_chat(tokenizer, prompt), return_tensors="pt").to(model.device)
        output = model.generate(
            input_ids=inputs.input_ids,
            attention_mask=inputs.attention_mask,
            max_new_tokens=args.max_new_tokens,
            pad_token_id=tokenizer.eos_token_id,
        )
        yield tokenizer.decode(output[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)


def render_chat(tokenizer, prompt: str) -> str:
    """The request to refine `prompt`, in the tokenizer's chat format."""
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": INSTRUCTION.format(prompt)}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def seed_sampling(torch, seed: int) -> None:
    """Seeds the sampling of models whose generation_config.json enables it, by replacing `torch.multinomial`.

    The one of mindnlp 0.5.1 uses UniformReal(0, 0) on CPU, which ignores all seeds.
    """
    rng = np.random.default_rng(seed)

    def multinomial(probabilities, num_samples):
        indices = sample_without_replacement(rng, probabilities.float().cpu().numpy(), num_samples)
        return torch.tensor(indices).to(probabilities.device)

    torch.multinomial = multinomial


def sample_without_replacement(rng: np.random.Generator, weights: np.ndarray, count: int) -> np.ndarray:
    """Weighted sampling without replacement: indices (..., count) into the last axis of `weights`.

    The `count` smallest of exponential variables with these rates are such a sample (Efraimidis and Spirakis 2006).
    """
    with np.errstate(divide="ignore"):
        times = rng.exponential(size=weights.shape) / weights
    return np.argsort(times, axis=-1)[..., :count]


def main() -> None:
    args = parse_args()
    answer_stdin(lambda prompts: answer_prompts(args, prompts))


if __name__ == "__main__":
    main()
