"""The argument parser of every command, without running it."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
# The file of each command and what to call in it to have its arguments parsed.
COMMANDS = {
    "opensora/sample/sample.py": "parse_options",
    "opensora/sample/sample_text_embed.py": "parse_args",
    "opensora/sample/caption_refiner.py": "parse_args",
    "opensora/sample/refiner_process.py": "parse_args",
    "opensora/train/train_t2v_diffusers.py": "parse_options",
    "opensora/train/train_inpaint.py": "parse_options",
    "opensora/train/train_causalvae.py": "parse_options",
    "opensora/eval/eval.py": "parse_args",
    "opensora/demo/score.py": "main",
    "opensora/cost_model.py": "parse_args",
    "opensora/datasets/bucketed/report.py": "main",
    "opensora/process/failed_ranks.py": "main",
    "examples/rec_video.py": "parse_args",
    "examples/rec_image.py": "parse_args",
    "examples/rec_video_folder.py": "parse_args",
    "examples/contact_sheet.py": "main",
    "tools/ckpt/cast_safetensors.py": "main",
    "tools/ckpt/merge_safetensors.py": "main",
    "tools/ckpt/set_latent_scale.py": "main",
    "tools/demo/draw_assets.py": "main",
    "tools/demo/make_data.py": "main",
    "tools/demo/make_text_encoder.py": "main",
    "tools/model_conversion/convert_ms_to_safetensors.py": "main",
    "tools/model_conversion/convert_pytorch_ckpt_to_safetensors.py": "main",
    "tools/model_conversion/convert_wfvae.py": "main",
    "scripts/inference.py": "main",
    "scripts/inference-long.py": "main",
    "scripts/train.py": "main",
    "benchmarks/run.py": "parse_args",
    "benchmarks/scaling.py": "parse_args",
    "benchmarks/dataset_index.py": "main",
    "benchmarks/mindspore_steps.py": "main",
}
PARSED_ELSEWHERE = {
    "opensora/sample/sample.py": "opensora.sample.options",
    "opensora/train/train_t2v_diffusers.py": "opensora.train.t2v_options",
    "opensora/train/train_inpaint.py": "opensora.train.inpaint_options",
    "opensora/train/train_causalvae.py": "opensora.train.vae_options",
}


class Parsed(Exception):
    def __init__(self, parser: argparse.ArgumentParser):
        self.parser = parser


def parser_of(command: str) -> argparse.ArgumentParser:
    """The complete parser with which a command would parse its arguments."""

    def stop(parser, *_, **__):
        raise Parsed(parser)

    with (
        mock.patch.object(sys, "argv", [command]),
        mock.patch.object(sys, "path", [str(ROOT / "benchmarks"), *sys.path]),
        mock.patch.object(argparse.ArgumentParser, "parse_args", stop),
    ):
        module = _module(command)
        try:
            getattr(module, COMMANDS[command])()
        except Parsed as parsed:
            return parsed.parser
    raise AssertionError(f"{command} parses no arguments")


def _module(command: str):
    if command in PARSED_ELSEWHERE:
        return importlib.import_module(PARSED_ELSEWHERE[command])
    spec = importlib.util.spec_from_file_location(f"command_{Path(command).stem.replace('-', '_')}", ROOT / command)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
