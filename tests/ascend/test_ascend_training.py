"""Steps of every trainer on the described machines, against a CPU in float32."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path
from typing import Callable

import numpy as np
import pytest
from made_clips import make_clips
from model_runs import drawn
from standins import Machine, attention, norms
from standins.machine import A2, A3, FIRST_GENERATION
from tiny_models import VAE, make_release
from training_runs import MASK_CONFIG, inpaint_command, lora_command, rows, state, t2v_command, vae_command
from workflow_configs import STDIT, run_training, training_config, write_workflow_files

from opensora.cli import train
from opensora.device import Device
from opensora.models import STDiT2
from opensora.train.t2v import ATTENTION_MASK, T2VTraining

LEARNING_RATE = 1e-3
# A tiny epsilon would scale rounding errors of tiny gradients up to full steps.
SHORT = "--dataloader_num_workers 0 --adam_epsilon 1e-6 --max_train_steps 2".split()
COLUMNS = ("loss", "grad_norm")
VAE_COLUMNS = (*COLUMNS, "kl_loss", "wl_loss", "d_weight", "g_loss", "discriminator_loss")
# Losses of the same data, gradients' norms after the first update.
MOST = {"fp32": 1e-4, "fp16": 0.03}
Train = Callable[..., Path]  # the name of the output, flags of the device -> the output


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Tiny models, and clips of two sizes; of each size in use there must be 16."""
    folder = tmp_path_factory.mktemp("training")
    make_release(folder / "release")
    make_clips(folder / "data", videos=16, images=0, frames=9, size=(32, 32))
    make_clips(folder / "wide", videos=16, images=0, frames=9, size=(32, 64))
    data = (folder / "data/merge_data.txt").read_text() + (folder / "wide/merge_data.txt").read_text()
    (folder / "both.txt").write_text(data)
    (folder / "config.json").write_text(json.dumps({"_class_name": "WFVAEModel", **VAE}))
    write_workflow_files(folder / "workflows")
    drawn(STDiT2(**STDIT, caption_channels=32, model_max_length=24)).save_pretrained(folder / "workflows/stdit")
    return folder


def on(target: str, precision: str) -> list[str]:
    return ["--device", target, "--precision", precision]


def train_t2v(folder: Path, output: str, *flags) -> Path:
    train.t2v(t2v_command(folder, output, *SHORT, "--train_batch_size", 2, *flags)[1:])
    return folder / output


def train_lora(folder: Path, output: str, *flags) -> Path:
    """Adapters of frozen weights in 8 bits."""
    more = [*SHORT, "--train_batch_size", 2, "--weights", "q8_0"]
    train.t2v(lora_command(folder, output, *more, *flags)[1:])
    return folder / output


def train_padded_t2v(folder: Path, output: str, *flags) -> Path:
    """Batches of clips of two sizes."""
    padded = [*SHORT, "--train_batch_size", 4, "--data", folder / "both.txt", "--max_hxw", 2048]
    command = [flag for flag in t2v_command(folder, output, *padded, *flags)[1:] if flag != "--group_data"]
    train.t2v(command)
    return folder / output


def train_inpaint(folder: Path, output: str, *flags) -> Path:
    flags = [*SHORT, "--train_batch_size", 4, "--mask_config", MASK_CONFIG, *flags]
    train.inpaint(inpaint_command(folder, output, *flags)[1:])
    return folder / output


def train_vae(folder: Path, output: str, *flags) -> Path:
    """A step of the autoencoder with the discriminator's loss, then one of the discriminator."""
    # Gradients of biases before norms are zero, apart from rounding, and others have a magnitude of 1000.
    steps = "--dataloader_num_workers 0 --adam_epsilon 10 --max_steps 2 --disc_start 0 --init_loss_scale 16".split()
    train.vae(vae_command(folder, output, *steps, "--wavelet_loss", "--print_losses", *flags)[1:])
    return folder / output


def train_stdit(folder: Path, output: str, *flags) -> Path:
    device = Device(flags[1], 1, flags[3])
    (folder / output).mkdir()
    config = training_config(
        folder / "workflows", folder / output / "train.py", max_train_steps=2, log_every=1, num_workers=0
    )
    run_training(config, device=device)
    (result,) = (folder / output / "outputs").iterdir()
    return result


TRAINERS: dict[str, Callable] = {
    "t2v": train_t2v,
    "lora": train_lora,
    "padded-t2v": train_padded_t2v,
    "inpaint": train_inpaint,
    "stdit": train_stdit,
    "vae": train_vae,
}


@pytest.fixture(scope="module")
def on_a_cpu(folder) -> Iterator[Callable[[str], Path]]:
    """The output of a trainer on a CPU."""

    @cache
    def run(name: str) -> Path:
        return TRAINERS[name](folder, f"cpu-{name}", *on("CPU", "fp32"))

    yield run


def check(found: Path, expected: Path, precision: str) -> None:
    """Losses and norms of both steps; in float32 also the weights, by less than a twentieth of an update.

    The epsilon of STDiT's training is fixed and tiny: its gradients that are zero, apart from rounding, give updates.
    """
    columns = VAE_COLUMNS if "vae" in found.name else COLUMNS
    tables = [rows(output, columns) for output in (found, expected)]
    numbers = [np.array([[float(value or 0) for value in row] for row in table]) for table in tables]
    print(f"{found.name}: {numbers[0].tolist()} {numbers[1].tolist()}")
    assert np.allclose(*numbers, rtol=MOST[precision])
    if precision == "fp32" and "STDiT" not in found.name:
        kind = "lora" if "lora" in found.name else "model"
        weights, others = (state(next(output.glob("checkpoint-*")) / kind) for output in (found, expected))
        assert weights.keys() == others.keys() and len(others) > 20
        largest = max(np.abs(value - others[name]).max() for name, value in weights.items())
        assert largest < LEARNING_RATE / 20


@pytest.mark.parametrize(
    "name, chip",
    [
        *product(("t2v", "lora", "padded-t2v", "inpaint", "stdit"), (A2,)),
        ("t2v", FIRST_GENERATION),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [("t2v", A3), *product(("lora", "padded-t2v", "inpaint", "stdit"), (FIRST_GENERATION,))]
        ),
    ],
)
def test_training_in_16_bits_equals_a_cpu(name, chip, folder, on_a_cpu, ascend):
    expected = on_a_cpu(name)
    machine: Machine = ascend(chip, as_bfloat16=chip != FIRST_GENERATION)
    found = TRAINERS[name](folder, f"{chip}-{name}", *on("Ascend", "fp16"))
    check(found, expected, "fp16")
    assert (attention.NAME in machine.calls) == (norms.LAYER in machine.calls) == (chip != FIRST_GENERATION)


@pytest.mark.parametrize(
    "name", [name if name == "padded-t2v" else pytest.param(name, marks=pytest.mark.slow) for name in TRAINERS]
)
def test_training_in_float32_equals_a_cpu(name, folder, on_a_cpu, ascend):
    expected = on_a_cpu(name)
    ascend(A2)
    check(TRAINERS[name](folder, f"fp32-{name}", *on("Ascend", "fp32")), expected, "fp32")


@pytest.mark.parametrize("chip", [A2, FIRST_GENERATION])
def test_vae_training_in_float16_equals_a_cpu(chip, folder, on_a_cpu, ascend):
    expected = on_a_cpu("vae")
    ascend(chip)
    check(train_vae(folder, f"{chip}-vae", *on("Ascend", "fp16")), expected, "fp16")


def test_padded_batches_have_padding(folder, monkeypatch):
    """Otherwise the masks of attention were not tested."""
    masks, stock = [], T2VTraining.inputs

    def inputs(*arguments) -> tuple:
        found = stock(*arguments)
        masks.append(found[ATTENTION_MASK])
        return found

    monkeypatch.setattr(T2VTraining, "inputs", inputs)
    train_padded_t2v(folder, "masks", *on("CPU", "fp32"))
    assert any(mask is not None and not mask.asnumpy().all() for mask in masks)
