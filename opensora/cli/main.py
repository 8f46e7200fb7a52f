"""The console command `opensora`: a table of verbs, and the function behind each.

The published scripts (`opensora/sample/sample.py`, `tools/`, `examples/`, ...) call the same functions with `run`. This
module imports neither MindSpore nor numpy, so that `opensora --help` is fast and `supervise` comes first.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple, NoReturn, Optional

import opensora
from opensora.process.supervision import supervise

DISTRIBUTION = "opensora-mindspore"


class Command(NamedTuple):
    """A function that takes no arguments and parses `sys.argv`, as "module:function"."""

    target: str
    help: str


COMMANDS = {
    "sample": Command("opensora.cli.sample:main", "make videos or images from text, or from text and given frames"),
    "studio": Command("opensora.cli.serve:studio", "make videos in a browser: serve, and open the page"),
    "serve": Command("opensora.cli.serve:main", "a web service that makes videos, with a queue and a page"),
    "search-steps": Command("opensora.cli.search_steps:main", "choose the timesteps of a run of few steps"),
    "inference": Command("opensora.cli.inference:main", "make videos or images as a config file describes"),
    "inference-long": Command("opensora.cli.inference:main_long", "make long videos clip by clip, from a config file"),
    "refine": Command("opensora.cli.refine:main", "rewrite short prompts into detailed ones"),
    "reconstruct": Command("opensora.cli.reconstruct:main", "encode and decode what the flags name"),
    "reconstruct video": Command("opensora.cli.reconstruct:video", "encode and decode a video with a VAE"),
    "reconstruct image": Command("opensora.cli.reconstruct:image", "encode and decode an image with a VAE"),
    "reconstruct folder": Command("opensora.cli.reconstruct:folder", "encode and decode a folder of videos"),
    "evaluate": Command("opensora.cli.evaluate:main", "metrics of generated videos, and a report"),
    "benchmark-prompts": Command("opensora.cli.benchmark_prompts:main", "sample a list of prompts and evaluate them"),
    "contact-sheet": Command("opensora.cli.contact_sheet:main", "write frames of videos into one image"),
    "train-t2v": Command("opensora.cli.train:t2v", "train the diffusion transformer"),
    "train-inpaint": Command("opensora.cli.train:inpaint", "train the inpaint model (image to video)"),
    "train-vae": Command("opensora.cli.train:vae", "train WFVAE"),
    "train": Command("opensora.cli.train:config", "train as a config file describes"),
    "prepare": Command("opensora.cli.prepare:main", "make training data from a folder of clips with captions"),
    "embed": Command("opensora.cli.embed:main", "embed the captions of training data once"),
    "encode": Command("opensora.cli.encode:main", "encode training data once, to train from latents"),
    "latent-scale": Command("opensora.cli.latent_scale:main", "measure a VAE's latents for its config.json"),
    "buckets": Command("opensora.datasets.bucketed.report:main", "show which samples fall into which bucket"),
    "plan": Command("opensora.cost_model.command:main", "count memory, compute and communication"),
    "convert": Command("opensora.cli.convert:main", "weights of any format to safetensors or GGUF"),
    "convert wfvae": Command("opensora.cli.convert:wfvae", "WFVAE checkpoint of PyTorch to safetensors"),
    "convert torch": Command("opensora.cli.convert:torch", "weights of torch.save to safetensors"),
    "convert mindspore": Command("opensora.cli.convert:mindspore", "MindSpore checkpoint to safetensors"),
    "inspect": Command("opensora.cli.inspect:main", "say what files and folders of weights hold"),
    "merge": Command("opensora.cli.merge:main", "merge sharded safetensors into one file"),
    "cast": Command("opensora.cli.cast:main", "store float32 safetensors as float16"),
    "fuse-lora": Command("opensora.cli.lora:fuse", "add LoRAs to the weights of a model"),
    "extract-lora": Command("opensora.cli.lora:extract", "make a LoRA of the difference of two models"),
    "failed-ranks": Command("opensora.cli.failed_ranks:main", "print why a run under msrun failed"),
    "doctor": Command("opensora.doctor.command:main", "check this machine and say what is wrong"),
    "build-kernels": Command("opensora.cli.build_kernels:main", "compile the C++ kernels of the CPU now"),
}


def main(argv: Optional[Sequence[str]] = None) -> None:
    """The entry point of `opensora` and `python -m opensora.cli`; `argv` defaults to `sys.argv[1:]`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return
    if arguments[0] in ("-V", "--version"):
        print(f"opensora {opensora.__version__}")
        return
    for words in (2, 1):
        verb = " ".join(arguments[:words])
        if verb in COMMANDS:
            sys.argv = [f"opensora {verb}", *arguments[words:]]
            run(COMMANDS[verb].target)
    sys.exit(_not_a_verb(arguments))


def run(target: str) -> NoReturn:
    """Runs a command, a function named as "module:function", and ends the process.

    Under msrun the supervising processes are forked here, before the import of MindSpore starts threads.
    """
    supervise()
    module, _, function = target.partition(":")
    try:
        command = getattr(importlib.import_module(module), function)
        from opensora.config.command_line import run_main
    except ModuleNotFoundError as error:
        if "OPENSORA_DEBUG" in os.environ or (error.name or "").split(".")[0] == "opensora":
            raise
        sys.exit(f"error: {error}: install the requirements with pip install {DISTRIBUTION}, or scripts/setup.sh")
    run_main(command)
    sys.exit()


def usage() -> str:
    """The text of `opensora --help`."""
    width = max(map(len, COMMANDS))
    lines = [f"  {verb:{width}}  {command.help}" for verb, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: opensora COMMAND [FLAGS]",
            "",
            opensora.__doc__ or "",
            "",
            "commands:",
            *lines,
            "",
            "opensora COMMAND --help lists the flags of a command. opensora --version prints the version.",
            "On 8 devices:",
            " msrun --worker_num=8 --local_worker_num=8 --join=True python -m opensora.cli COMMAND --use_parallel True",
        ]
    )


def _not_a_verb(arguments: Sequence[str]) -> str:
    first_words = list(dict.fromkeys(verb.split()[0] for verb in COMMANDS))
    close = difflib.get_close_matches(arguments[0], first_words, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else "opensora --help lists the commands"
    return f"error: opensora has no command {arguments[0]!r}; {hint}"
