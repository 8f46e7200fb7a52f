"""train_causalvae.py as users run it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from made_clips import make_clips
from tiny_models import VAE
from training_runs import rows, state
from training_runs import vae_command as flags

from opensora.models import WFVAEModel
from opensora.train.checkpoint import checkpoints
from opensora.train.vae_options import parse_options


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("vae_training")
    make_clips(folder / "data", videos=6, images=0, frames=17, size=(48, 64))
    (folder / "config.json").write_text(json.dumps({"_class_name": "WFVAEModel", **VAE}))
    return folder


def test_a_run_and_its_continuation(folder, run):
    """Autoencoder and discriminator take turns; a run in two parts equals one."""
    validation = (
        "--validate",
        "--eval_video_path",
        folder / "data/clips",
        "--eval_num_frames",
        5,
        "--eval_resolution",
        32,
        "--eval_steps",
        6,
    )
    finished = run(*flags(folder, "whole", "--max_steps", 12, "--print_losses", *validation))
    assert finished.returncode == 0, finished.stderr
    with open(folder / "whole/train_log.csv", newline="") as file:
        log = list(csv.DictReader(file))
    losses = [float(row["nll_loss"]) for row in log]
    assert losses[-1] < losses[0] and log[0]["discriminator_loss"] == ""
    assert "discriminator_loss |" in finished.stderr and "nan" not in finished.stderr
    assert float(log[3]["discriminator_loss"]) > 0 and float(log[4]["d_weight"]) > 0
    results = (folder / "whole/result_val.log").read_text().splitlines()
    psnr = [float(line.split("| psnr ")[1].split(" ")[0]) for line in results]
    assert len(psnr) == 2 and psnr[1] > psnr[0] and "ema_ssim" in results[0]
    assert list((folder / "whole/tensorboard").glob("events*"))

    for steps in (7, 12):
        finished = run(
            *flags(
                folder,
                "parts",
                "--max_steps",
                steps,
                "--print_losses",
                "--resume_from_checkpoint",
                "True",
                *validation[:-1],
                9,
            )
        )
        assert finished.returncode == 0, finished.stderr
    columns = ("step", "loss", "discriminator_loss", "d_weight", "grad_norm")
    parts, whole = (
        np.array([[cell or "nan" for cell in row] for row in rows(folder / name, columns)], float)
        for name in ("parts", "whole")
    )
    # Gradients of convolutions are summed by several threads, in an order that may change.
    assert np.allclose(parts, whole, rtol=1e-3, equal_nan=True)
    parts, whole = (state(folder / name / "checkpoint-12/model") for name in ("parts", "whole"))
    for name, value in whole.items():
        assert np.allclose(parts[name], value, atol=1e-2 * np.abs(value).max()), name

    saved = checkpoints(folder / "whole")[0] / "model_ema"
    assert WFVAEModel.from_pretrained(saved).config.base_channels == VAE["base_channels"]
    finished = run(
        "examples/rec_video_folder.py",
        "--ae_path",
        saved,
        "--real_video_dir",
        folder / "data/clips",
        "--generated_video_dir",
        folder / "reconstructed",
        "--num_frames",
        5,
        "--resolution",
        32,
        "--crop_size",
        32,
        "--device",
        "CPU",
        "--ms_checkpoint",
        saved.parent / "model/diffusion_pytorch_model.safetensors",
    )
    assert finished.returncode == 0, finished.stderr
    assert len(list((folder / "reconstructed").glob("*.mp4"))) == 6


@pytest.mark.parametrize(
    "more, words",
    [
        (["--validate"], "needs --eval_video_path"),
        (["--train_batch_size", "0"], "train_batch_size must be 1 or more, not 0"),
    ],
)
def test_flags_that_contradict(folder, more, words):
    with pytest.raises(ValueError, match=words):
        parse_options(flags(folder, "none", *more)[1:])


def test_lpips_without_its_weights(folder, run):
    finished = run(*flags(folder, "none", "--perceptual_weight", 1, "--lpips_path", folder / "lpips.ckpt"))
    assert finished.returncode == 1
    assert f"error: {folder / 'lpips.ckpt'}: no such file" in finished.stderr
