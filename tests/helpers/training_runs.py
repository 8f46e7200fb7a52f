"""Commands that train tiny models, and readers of their output."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from opensora.checkpoint.formats.safetensors import read_safetensors

T2V_SCRIPT = "opensora/train/train_t2v_diffusers.py"


# The models of each generation in `make_older_release`, and their objective.
GENERATIONS = {
    "v1.3": "--model {release}/transformer --ae_path {release}/vae --sparse1d --sparse_n 4 "
    "--prediction_type v_prediction --rescale_betas_zero_snr --snr_gamma 5",
    "v1.2": "--model {release}/transformer_v1_2 --ae CausalVAEModel_D4_4x8x8 --ae_path {release}/vae_v1_2 "
    "--snr_gamma 5 --noise_offset 0.02",
    "v1.1": "--model {release}/transformer_v1_1 --ae CausalVAEModel_4x8x8 --ae_path {release}/vae_v1_1",
}


def t2v_command(folder: Path, output: str, *more, generation: str = "v1.3") -> list[str]:
    """Trains a tiny text-to-video model on the release and the clips of `folder`."""
    return [
        T2V_SCRIPT,
        *GENERATIONS[generation].format(release=folder / "release").split(),
        *f"--data {folder}/data/merge_data.txt "
        f"--text_encoder_name_1 {folder}/release/text --cache_dir {folder}/cache --output_dir {folder}/{output} "
        "--num_frames 5 --max_hxw 1024 --group_data --model_max_length 64 --use_ema "
        "--start_learning_rate 1e-3 --dataloader_num_workers 1 --device CPU --log_interval 4".split(),
        *map(str, more),
    ]


def rows(folder: Path, columns=("step", "loss", "lr", "grad_norm")) -> list[list[str]]:
    with open(folder / "train_log.csv", newline="") as file:
        return [[row[name] for name in columns] for row in csv.DictReader(file)]


def state(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of a checkpoint."""
    return {
        f"{path.parent.name}/{name}": tensor.numpy()
        for path in sorted(folder.rglob("*.safetensors"))
        for name, tensor in read_safetensors(path).items()
    }


def assert_same(a: Path, b: Path) -> None:
    assert_same_tensors(a, b, at_least=100)


def assert_same_tensors(a: Path, b: Path, at_least: int = 10) -> None:
    first, second = state(a), state(b)
    assert first.keys() == second.keys() and len(first) > at_least
    for name, value in first.items():
        assert (value == second[name]).all(), name


MASK_CONFIG = "scripts/train_configs/mask_config.yaml"


def inpaint_command(folder, output, *more) -> list[str]:
    script, *rest = t2v_command(folder, output, "--pretrained", folder / "release/transformer", *more)
    return [script.replace("t2v_diffusers", "inpaint"), *rest]


def vae_command(folder: Path, output: str, *more, config: str = "config.json") -> list[str]:
    """Trains the tiny autoencoder of a configuration in `folder` on the clips of `folder`."""
    return [
        "opensora/train/train_causalvae.py",
        *f"--model_config {folder}/{config} --video_path {folder}/data/clips --output_dir {folder} "
        f"--exp_name {output} --cache_dir {folder}/cache --video_num_frames 5 --resolution 32 --train_batch_size 2 "
        "--perceptual_weight 0 --use_discriminator --disc_start 2 --use_ema "
        "--start_learning_rate 3e-4 --dataloader_num_workers 1 --device CPU --log_interval 2".split(),
        *map(str, more),
    ]


def lora_command(folder: Path, output: str, *more, generation: str = "v1.3") -> list[str]:
    """Trains a LoRA of the transformer of the release."""
    argv = t2v_command(folder, output, "--lora_rank", 2, "--lora_alpha", 4, *more, generation=generation)
    argv[argv.index("--model")] = "--pretrained"
    return argv
