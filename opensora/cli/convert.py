"""opensora convert: checkpoints to safetensors, tensor by tensor. The format of the source is detected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

from opensora.checkpoint.convert import convert
from opensora.checkpoint.formats.mindspore import is_mindspore_file
from opensora.models.convert import convert_mindspore
from opensora.utils.cli import CommandParser, str2bool


def main(argv: Optional[Sequence[str]] = None) -> None:
    parser = _parser(
        "Weights -> safetensors with torch names, tensor by tensor.",
        "PyTorch file, index.json of its shards, or MindSpore checkpoint",
    )
    parser.add_argument("--use_ema", type=str2bool, default=True, help="False: plain weights of a training checkpoint")
    args = parser.parse_args(argv)
    with open(args.src, "rb") as file:
        is_mindspore = is_mindspore_file(file.read(1))
    if is_mindspore:
        convert_mindspore(args.src, args.target, args.config)
    else:
        convert(args.src, args.target, args.config, args.use_ema)


def wfvae(argv: Optional[Sequence[str]] = None) -> None:
    parser = _parser("WFVAE checkpoint -> safetensors, tensor by tensor.", "checkpoint of torch.save")
    parser.add_argument("--use_ema", type=str2bool, default=True, help="False: the plain weights (gen_model)")
    args = parser.parse_args(argv)
    convert(args.src, args.target, args.config, args.use_ema)


def torch(argv: Optional[Sequence[str]] = None) -> None:
    parser = _parser(
        "Torch weights -> safetensors, tensor by tensor.", "file of torch.save, or index.json of its shards"
    )
    args = parser.parse_args(argv)
    convert(args.src, args.target, args.config)


def mindspore(argv: Optional[Sequence[str]] = None) -> None:
    parser = _parser(
        "MindSpore checkpoint -> safetensors with torch names.",
        "MindSpore checkpoint; entries of an optimizer are left out",
    )
    args = parser.parse_args(argv)
    convert_mindspore(args.src, args.target, args.config)


def _parser(description: str, source: str) -> CommandParser:
    parser = CommandParser(description=description)
    parser.add_argument("--src", required=True, help=source)
    parser.add_argument("--target", required=True, help="safetensors file to write")
    parser.add_argument("--config", required=True, help="config.json of the model")
    return parser
