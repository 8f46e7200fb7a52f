"""The argument parser of every command, without running it."""

from __future__ import annotations

import argparse
import runpy
import sys
from pathlib import Path
from unittest import mock

from opensora.cli import main

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = (
    "opensora/sample/sample.py",
    "opensora/sample/sample_text_embed.py",
    "opensora/sample/caption_refiner.py",
    "opensora/sample/refiner_process.py",
    "opensora/sample/text_encoder_process.py",
    "opensora/train/train_t2v_diffusers.py",
    "opensora/train/train_inpaint.py",
    "opensora/train/train_causalvae.py",
    "opensora/serve/model_process.py",
    "opensora/serve/worker.py",
    "opensora/eval/eval.py",
    "opensora/demo/score.py",
    "opensora/cost_model/__main__.py",
    "opensora/datasets/bucketed/report.py",
    "examples/rec_video.py",
    "examples/rec_image.py",
    "examples/rec_video_folder.py",
    "examples/contact_sheet.py",
    "tools/ckpt/cast_safetensors.py",
    "tools/ckpt/extract_lora.py",
    "tools/ckpt/fuse_lora.py",
    "tools/ckpt/merge_safetensors.py",
    "tools/ckpt/set_latent_scale.py",
    "tools/demo/draw_assets.py",
    "tools/demo/make_data.py",
    "tools/demo/make_new_clips.py",
    "tools/demo/make_text_encoder.py",
    "tools/make_full_size_release.py",
    "tools/make_tiny_release.py",
    "tools/search_steps.py",
    "tools/model_conversion/convert_ms_to_safetensors.py",
    "tools/model_conversion/convert_pytorch_ckpt_to_safetensors.py",
    "tools/model_conversion/convert_wfvae.py",
    "scripts/inference.py",
    "scripts/inference-long.py",
    "scripts/train.py",
    "benchmarks/run.py",
    "benchmarks/scaling.py",
    "benchmarks/quality.py",
    "benchmarks/full_size.py",
    "benchmarks/convolution_onednn.py",
    "benchmarks/dataset_index.py",
    "benchmarks/latent_cache.py",
    "benchmarks/mindspore_steps.py",
    "benchmarks/weight_formats.py",
)


VERBS = tuple(f"opensora {verb}" for verb in main.COMMANDS)
COMMANDS = (*SCRIPTS, *VERBS)


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
        try:
            if command in VERBS:
                main.main(command.split()[1:])
            else:
                runpy.run_path(str(ROOT / command), run_name="__main__")
        except Parsed as parsed:
            return parsed.parser
    raise AssertionError(f"{command} parses no arguments")
