"""opensora convert: checkpoints to safetensors or GGUF, tensor by tensor.

`opensora convert` detects the format of the source; `wfvae`, `torch` and `mindspore` are the published tools.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

from opensora.checkpoint.convert import convert
from opensora.checkpoint.formats.mindspore import is_mindspore_file
from opensora.config.command_line import parse_flags
from opensora.config.commands import ConvertAnyOptions, ConvertMindSporeOptions, ConvertOptions, ConvertWFVAEOptions


def main(argv: Optional[Sequence[str]] = None) -> None:
    args = parse_flags(
        "Converts weights of any format to safetensors or GGUF, tensor by tensor.", (ConvertAnyOptions,), argv
    )
    with open(args.src, "rb") as file:
        is_mindspore = is_mindspore_file(file.read(1))
    if is_mindspore:
        _convert_mindspore(args.src, args.target, args.config, args.to, args.format)
    else:
        convert(args.src, args.target, args.config, args.use_ema, args.to, args.format)


def wfvae(argv: Optional[Sequence[str]] = None) -> None:
    args = parse_flags("Converts a WFVAE checkpoint to safetensors, tensor by tensor.", (ConvertWFVAEOptions,), argv)
    convert(args.src, args.target, args.config, args.use_ema)


def torch(argv: Optional[Sequence[str]] = None) -> None:
    args = parse_flags("Converts torch weights to safetensors, tensor by tensor.", (ConvertOptions,), argv)
    convert(args.src, args.target, args.config)


def mindspore(argv: Optional[Sequence[str]] = None) -> None:
    args = parse_flags(
        "Converts a MindSpore checkpoint to safetensors with torch names.", (ConvertMindSporeOptions,), argv
    )
    _convert_mindspore(args.src, args.target, args.config)


def _convert_mindspore(
    src: str, target: str, config: str, to: Optional[str] = None, format: Optional[str] = None
) -> None:
    from opensora.models.convert import convert_mindspore  # imports MindSpore

    convert_mindspore(src, target, config, to, format)
