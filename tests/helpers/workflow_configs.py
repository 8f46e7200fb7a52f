"""Config files, tiny models and data for the workflows of scripts/inference.py, inference-long.py and train.py."""

from __future__ import annotations

import csv
from pathlib import Path

import mindspore as ms
from made_clips import moving_square
from tiny_models import make_release

from opensora.cli.config_files import parse_configs
from opensora.datasets.media import save_image, write_video
from opensora.device import Device
from opensora.models import STDiT2, VideoAutoencoderKL
from opensora.sample import config_inference
from opensora.train import config_run

CPU = Device("CPU", 1, "fp32")
STDIT = dict(depth=2, hidden_size=48, num_heads=4, input_sq_size=64, qk_norm=True)
KL = dict(
    block_out_channels=[8, 8, 16, 16],
    norm_num_groups=4,
    down_block_types=["DownEncoderBlock2D"] * 4,
    up_block_types=["UpDecoderBlock2D"] * 4,
)
BUCKETS = {"144p": {4: (1.0, 2), 1: (1.0, 4)}}


def write_workflow_files(folder: Path) -> None:
    """Writes models of both families, an image, and videos and images to train on."""
    make_release(folder / "release")
    ms.set_seed(3)
    VideoAutoencoderKL(**KL).save_pretrained(folder / "kl")
    ms.set_seed(4)
    STDiT2(**STDIT, caption_channels=32, model_max_length=24).save_pretrained(folder / "stdit")
    save_image(folder / "image.png", moving_square(1, 48, 80, (250, 40, 10))[0])
    table = [["path", "text", "num_frames", "height", "width"]]
    for number in range(8):
        with write_video(folder / f"{number}.mp4", 12) as write:
            write(moving_square(12, 144, 256, (30 * number, 200, 40)))
        table.append([folder / f"{number}.mp4", f"A square, {number}.", 12, 144, 256])
        save_image(folder / f"{number}.png", moving_square(1, 144, 256, (200, 30 * number, 40))[0])
        table.append([folder / f"{number}.png", f"An image of a square, {number}.", 1, 144, 256])
    with open(folder / "data.csv", "w", newline="") as file:
        csv.writer(file).writerows(table)


def write_config(path: Path, **fields) -> Path:
    path.write_text("".join(f"{name} = {value!r}\n" for name, value in fields.items() if value is not ...))
    return path


def components(folder: Path, **scheduler) -> dict:
    """The components of an Open-Sora v1.1 config."""
    return {
        "model": dict(type="STDiT2-XL/2", from_pretrained=str(folder / "stdit"), enable_flashattn=True),
        "vae": dict(type="VideoAutoencoderKL", from_pretrained=str(folder / "kl"), micro_batch_size=3),
        "text_encoder": dict(type="t5", from_pretrained=str(folder / "release/text"), model_max_length=24),
        "scheduler": dict(type="iddpm", **scheduler),
        "dtype": "fp32",
        "device": "CPU",
    }


def inference_config(folder: Path, path: Path, **changes) -> Path:
    fields = {
        **components(folder, num_sampling_steps=2, cfg_scale=7.0, cfg_channel=3),
        "num_frames": 4,
        "frame_interval": 3,
        "fps": 24,
        "image_size": (36, 50),
        "multi_resolution": "STDiT2",
        "prompt": ["A car.", "A dog.", "A tree."],
        "batch_size": 2,
        "seed": 42,
        "save_dir": str(path.parent / "samples"),
    }
    return write_config(path, **{**fields, **changes})


def training_config(folder: Path, path: Path, **changes) -> Path:
    fields = {
        **components(folder, timestep_respacing=""),
        "bucket_config": BUCKETS,
        "num_workers": 1,
        "plugin": "zero2",
        "mask_ratios": {"identity": 0.5, "quarter_random": 0.2, "image_head_tail": 0.3},
        "grad_checkpoint": True,
        "dataset": dict(
            type="VariableVideoTextDataset",
            data_path=str(folder / "data.csv"),
            transform_name="resize_crop",
            cache_dir=str(folder / "cache"),
        ),
        "seed": 42,
        "outputs": str(path.parent / "outputs"),
        "log_every": 2,
        "ckpt_every": 3,
        "lr": 1e-3,
        "grad_clip": 1.0,
        "load": None,
        "epochs": 1,
    }
    return write_config(path, **{**fields, **changes})


def run_inference(config: Path, *flags, long: bool = False, device: Device = CPU) -> None:
    """Runs scripts/inference.py or inference-long.py in this process."""
    config_inference.run(parse_configs(False, [str(config), *map(str, flags)]), device, long)


def run_training(config: Path, *flags, device: Device = CPU) -> None:
    """Runs scripts/train.py in this process."""
    config_run.run(parse_configs(True, [str(config), *map(str, flags)]), device)
