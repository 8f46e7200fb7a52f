"""train_causalvae.py as users run it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from made_clips import make_clips
from tiny_models import CAUSAL_VAE, VAE
from training_runs import rows, state
from training_runs import vae_command as command

from opensora.models import CausalVAEModel, WFVAEModel
from opensora.models.lpips import LPIPS
from opensora.train.trainer import run as run_training
from opensora.train.vae import VAETraining
from opensora.train.vae_options import VAELossOptions, parse_options


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("vae_training")
    make_clips(folder / "data", videos=6, images=0, frames=17, size=(48, 64))
    (folder / "config.json").write_text(json.dumps({"_class_name": "WFVAEModel", **VAE}))
    return folder


def flags(folder: Path, eval_steps: int) -> list[str]:
    return f"--max_steps 12 --checkpointing_steps 7 --wavelet_loss --print_losses --validate \
        --eval_video_path {folder}/data/clips --eval_num_frames 5 --eval_resolution 32 \
        --eval_steps {eval_steps}".split()


@pytest.fixture(scope="module")
def whole(folder, run) -> Path:
    """The output of an uninterrupted run of 12 steps; autoencoder and discriminator alternate."""
    finished = run(*command(folder, "whole", *flags(folder, 6)))
    assert finished.returncode == 0, finished.stderr
    assert "discriminator_loss |" in finished.stderr and "nan" not in finished.stderr
    return folder / "whole"


def test_run_trains_both_networks_and_validates(whole):
    with open(whole / "train_log.csv", newline="") as file:
        log = list(csv.DictReader(file))
    losses = [float(row["nll_loss"]) for row in log]
    assert losses[-1] < losses[0] and log[0]["discriminator_loss"] == ""
    assert float(log[3]["discriminator_loss"]) > 0 and float(log[4]["d_weight"]) > 0
    results = (whole / "result_val.log").read_text().splitlines()
    psnr = [float(line.split("| psnr ")[1].split(" ")[0]) for line in results]
    assert len(psnr) == 2 and psnr[1] > psnr[0] and "ema_ssim" in results[0]
    assert list((whole / "tensorboard").glob("events*"))


@pytest.mark.parametrize("precision, most", [("fp16", 0.05), ("bf16", 0.2)])
def test_training_in_16_bits_follows_float32(precision, most, folder, whole, run):
    """The loss, a sum over pixels, is so large that the default loss scale would first overflow."""
    more = f"--wavelet_loss --max_steps 6 --print_losses --precision {precision} --init_loss_scale 16".split()
    finished = run(*command(folder, precision, *more))
    assert finished.returncode == 0, finished.stderr
    columns = ("nll_loss", "kl_loss", "wl_loss", "grad_norm")
    found, expected = (np.array(rows(folder / name, columns)[:6], float) for name in (precision, "whole"))
    assert (np.abs(found / expected - 1) < most).all() and (found != expected).any()


def test_resumed_run_equals_uninterrupted_run(folder, whole):
    """Also with validation at other steps, which must not change the training."""
    resume = ["--resume_from_checkpoint", whole / "checkpoint-7"]
    argv = command(folder, "resumed", *flags(folder, 9), *resume)[1:]
    run_training(VAETraining, *parse_options(argv))
    columns = ("step", "loss", "discriminator_loss", "d_weight", "grad_norm")
    resumed, expected = rows(folder / "resumed", columns), rows(whole, columns)[7:]
    # Gradients of convolutions are summed by several threads, in an order that may change.
    assert len(resumed) == 5 and np.allclose(np.array(resumed, float), np.array(expected, float), rtol=1e-3)
    weights = state(folder / "resumed/checkpoint-12/model")
    for name, value in state(whole / "checkpoint-12/model").items():
        assert np.allclose(weights[name], value, atol=1e-2 * np.abs(value).max()), name


@pytest.mark.parametrize(
    "generation, more",
    [
        ("v1.0", "--disc_cls opensora.models.ae.videobase.losses.LPIPSWithDiscriminator"),
        ("v1.2", "--model_name CausalVAE"),
    ],
)
def test_causal_vae_learns_and_resumes(generation, more, folder):
    (folder / f"{generation}.json").write_text(json.dumps({"_class_name": "CausalVAEModel", **CAUSAL_VAE[generation]}))
    more = f"{more} --checkpointing_steps 3 --betas 0.5 0.9 --weight_decay 0 --clip_grad --dataloader_num_workers 0"
    columns = ("step", "loss", "discriminator_loss", "grad_norm")
    for output, steps in (("whole", 6), ("parts", 3), ("parts", 6)):
        flags = f"--max_steps {steps} --resume_from_checkpoint True {more}".split()
        argv = command(folder, f"{generation}-{output}", *flags, config=f"{generation}.json")
        run_training(VAETraining, *parse_options(argv[1:]))
    log, resumed = (np.array(rows(folder / f"{generation}-{name}", columns)[3:], float) for name in ("whole", "parts"))
    assert np.allclose(log, resumed, rtol=1e-2)  # see test_resumed_run_equals_uninterrupted_run
    losses = [float(loss) for (loss,) in rows(folder / f"{generation}-whole", ("loss",))]
    assert losses[2] < losses[0] and (log[:, 2] > 0).all()
    saved = folder / f"{generation}-whole/checkpoint-6"
    assert CausalVAEModel.from_pretrained(saved / "model_ema").config.temporal_stride == 4


def test_class_of_the_configuration_must_be_the_named_one(folder):
    with pytest.raises(ValueError, match="--model_name CausalVAE: .*config.json describes a WFVAEModel"):
        argv = command(folder, "none", "--model_name", "CausalVAE", "--dataloader_num_workers", 0)
        run_training(VAETraining, *parse_options(argv[1:]))


def test_trained_weights_reconstruct_a_folder_of_videos(folder, whole, run):
    saved = whole / "checkpoint-12/model_ema"
    assert WFVAEModel.from_pretrained(saved).config.base_channels == VAE["base_channels"]
    flags = f"--ae_path {saved} --real_video_dir {folder}/data/clips --generated_video_dir {folder}/reconstructed \
        --num_frames 5 --resolution 32 --crop_size 32 --device CPU \
        --ms_checkpoint {saved.parent}/model/diffusion_pytorch_model.safetensors"
    finished = run("examples/rec_video_folder.py", *flags.split())
    assert finished.returncode == 0, finished.stderr
    assert len(list((folder / "reconstructed").glob("*.mp4"))) == 6


@pytest.mark.parametrize(
    "more, words",
    [
        (["--validate"], "needs --eval_video_path"),
        (["--train_batch_size", "0"], "train_batch_size must be 1 or more, not 0"),
    ],
)
def test_contradictory_flags_are_rejected(folder, more, words):
    with pytest.raises(ValueError, match=words):
        parse_options(command(folder, "none", *more)[1:])


def test_missing_lpips_weights_are_reported(folder, run):
    finished = run(*command(folder, "none", "--perceptual_weight", 1, "--lpips_path", folder / "lpips.ckpt"))
    assert finished.returncode == 1
    assert f"error: {folder / 'lpips.ckpt'}: no such file" in finished.stderr


def test_perceptual_loss_is_off_unless_asked_for():
    assert VAELossOptions.perceptual_weight == 0


def test_missing_lpips_weights_name_the_published_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="https://download-mindspore.osinfra.cn/.*/lpips_vgg-426bf45c.ckpt"):
        LPIPS.load(tmp_path / "lpips_vgg-426bf45c.ckpt")
