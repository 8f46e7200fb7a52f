"""scripts/train.py with tiny random models."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from made_clips import make_clips
from processes import msrun
from training_runs import assert_same, rows
from workflow_configs import STDIT, inference_config, run_inference, run_training, training_config

from opensora.cli.config_files import parse_configs
from opensora.train import config_run
from opensora.train.checkpoint import checkpoints


@pytest.fixture(scope="module")
def trained(folder, run) -> Path:
    """The config of a finished run of one epoch, next to its outputs. Six batches: 4 of videos, 2 of images."""
    (folder / "run").mkdir()
    config = training_config(folder, folder / "run/train.py")
    finished = run("scripts/train.py", config)
    assert finished.returncode == 0, finished.stderr
    assert ["144p", "4", "1", "2", "8", "4"] in [line.split()[:6] for line in finished.stderr.splitlines()]
    assert "step 6/6 | loss" in finished.stderr
    return config


def test_resumed_training_is_bit_identical(folder, trained, run, tmp_path):
    """A run resumed from its middle equals the uninterrupted run."""
    whole = trained.parent / "outputs/000-STDiT2-XL-2"
    assert [path.name for path in checkpoints(whole)] == ["checkpoint-6", "checkpoint-3"]
    assert json.loads((whole / "config.txt").read_text())["bucket_config"]["144p"]["4"] == [1.0, 2]
    assert all(np.isfinite(float(loss)) for _, loss in rows(whole, ("step", "loss")))
    finished = run("scripts/train.py", trained, "--load", whole / "checkpoint-3")
    assert finished.returncode == 0, finished.stderr
    resumed = trained.parent / "outputs/001-STDiT2-XL-2"
    assert rows(resumed) == rows(whole)[3:]
    assert_same(resumed / "checkpoint-6", whole / "checkpoint-6")


def test_resuming_with_changed_fields(folder, trained, tmp_path, capsys):
    """Rejected for fields that change the data order or the objective; other changes are listed."""
    whole = trained.parent / "outputs/000-STDiT2-XL-2"
    other = {4: (1.0, 4), 1: (1.0, 4)}
    for changes, words in (
        ({"seed": 5}, "seed 42 -> 5"),
        ({"bucket_config": {"144p": other}}, "bucket_config"),
        ({"scheduler": dict(type="iddpm-speed")}, "scheduler.type iddpm -> iddpm-speed"),
    ):
        with pytest.raises(ValueError, match=f"checkpoint-3 is of a run with other arguments: .*{words}"):
            run_training(training_config(folder, tmp_path / "train.py", **changes), "--load", whole / "checkpoint-3")
    assert not (tmp_path / "outputs").exists()
    config = training_config(folder, tmp_path / "train.py", seed=5, lr=2e-3, max_train_steps=4, log_every=1)
    run_training(config, "--load", whole / "checkpoint-3", "--allow-changed-arguments")
    errors = capsys.readouterr().err
    assert "seed 42 -> 5, lr 0.001 -> 0.002" in errors and "they begin with their first epoch" in errors
    assert [step for step, *_ in rows(tmp_path / "outputs/000-STDiT2-XL-2")] == ["4"]


def test_start_from_scratch_keeps_the_weights(folder, trained, tmp_path):
    """Weights, averages and optimizer state come from the checkpoint; the step count starts at 0."""
    whole = trained.parent / "outputs/000-STDiT2-XL-2"
    run_training(
        training_config(folder, tmp_path / "train.py", max_train_steps=1, seed=5),
        "--load",
        whole,
        "--start-from-scratch",
    )
    output = tmp_path / "outputs/000-STDiT2-XL-2"
    assert [step for step, *_ in rows(output)] == ["1"]
    assert json.loads((output / "checkpoint-1/state.json").read_text())["optimizers"][""]["steps"] == 7
    for name in ("", "/model_ema"):
        run_inference(
            inference_config(folder, tmp_path / "video.py", prompt=["A square."], num_frames=1),
            "--ckpt-path",
            f"{whole}/checkpoint-6{name}",
        )


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_training_in_16_bits_follows_float32(precision, folder, trained, run, tmp_path):
    config = training_config(folder, tmp_path / "train.py", dtype=precision)
    finished = run("scripts/train.py", config)
    assert finished.returncode == 0, finished.stderr
    outputs = (path.parent / "outputs/000-STDiT2-XL-2" for path in (config, trained))
    found, expected = (np.array(rows(output, ("loss",)), float) for output in outputs)
    assert (np.abs(found / expected - 1) < 0.02).all() and (found != expected).any()


def test_training_with_one_shape_and_iddpm_speed(folder, tmp_path):
    """VideoTextDataset with iddpm-speed, from random weights, for a number of steps instead of epochs."""
    changes = dict(
        bucket_config=...,
        mask_ratios=...,
        batch_size=4,
        max_train_steps=2,
        ckpt_every=0,
        plugin=...,
        model=dict(type="STDiT2-XL/2", **STDIT),
        scheduler=dict(type="iddpm-speed"),
        dataset=dict(
            type="VideoTextDataset",
            data_path=str(folder / "data.csv"),
            num_frames=2,
            frame_interval=2,
            image_size=(32, 32),
            cache_dir=str(folder / "cache"),
        ),
    )
    run_training(training_config(folder, tmp_path / "train.py", **changes))
    assert [path.name for path in checkpoints(tmp_path / "outputs/000-STDiT2-XL-2")] == ["checkpoint-2"]


def test_plan_training(folder, tmp_path):
    data, release = make_clips(tmp_path / "clips", videos=8, images=8, frames=9, size=(32, 32)), folder / "release"
    config = training_config(
        folder,
        tmp_path / "plan.py",
        bucket_config=...,
        mask_ratios=...,
        max_train_steps=2,
        batch_size=1,
        gradient_accumulation_steps=2,
        model=dict(type="OpenSoraT2V_v1_3-2B/122", from_pretrained=str(release / "transformer")),
        vae=dict(type="WFVAEModel_D8_4x8x8", from_pretrained=str(release / "vae")),
        text_encoder=dict(type="mt5", from_pretrained=str(release / "text"), model_max_length=64),
        scheduler=dict(type="EulerAncestralDiscrete", prediction_type="v_prediction", snr_gamma=5.0),
        dataset=dict(
            type="T2VDataset",
            data=str(data),
            num_frames=5,
            max_hxw=1024,
            group_data=True,
            cache_dir=str(tmp_path / "cache"),
        ),
    )
    options = config_run.plan_options(parse_configs(True, [str(config)]), 2)
    assert options.gradient_accumulation_steps == 2
    run_training(config)
    output = tmp_path / "outputs/000-OpenSoraT2V_v1_3-2B-122"
    assert len(rows(output)) == 2 and (output / "checkpoint-2/model_ema").is_dir()


def test_sequence_parallel_training_matches_one_process(folder, trained, tmp_path):
    """With sp_size 2, two processes take half of each batch each; the losses match those of one process."""
    config = training_config(
        folder, tmp_path / "train.py", max_train_steps=2, ckpt_every=0, plugin="zero2-seq", sp_size=2
    )
    finished, logs = msrun(2, tmp_path / "logs", "scripts/train.py", config)
    assert finished.returncode == 0, logs[0][-3000:]
    one, two = (
        np.array([[float(x) for x in row] for row in rows(parent / "outputs/000-STDiT2-XL-2")[:2]])
        for parent in (trained.parent, tmp_path)
    )
    assert two.shape == (2, 4) and np.allclose(one, two, rtol=1e-4), (one, two)


@pytest.mark.slow
def test_fifty_steps_on_two_processes_reduce_the_loss(folder, tmp_path):
    """Each process takes its own batches, of videos or of images; the loss decreases."""
    config = training_config(
        folder,
        tmp_path / "train.py",
        max_train_steps=50,
        ckpt_every=25,
        mask_ratios=...,
        bucket_config={"144p": {3: (1.0, 2), 1: (1.0, 4)}},
        grad_checkpoint=False,
    )
    finished, logs = msrun(2, tmp_path / "logs", "scripts/train.py", config)
    assert finished.returncode == 0, logs[0][-3000:]
    output = tmp_path / "outputs/000-STDiT2-XL-2"
    losses = [float(loss) for _, loss in rows(output, ("step", "loss"))]
    assert len(losses) == 50 and np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10])
    assert [path.name for path in checkpoints(output)] == ["checkpoint-50", "checkpoint-25"]
    state = json.loads((output / "checkpoint-50/state.json").read_text())
    assert state["position"]["sampler"]["epoch"] == 50 // 3  # six batches are three steps of two processes


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"plugin": "zero9"}, "plugin 'zero9' is not one of"),
        ({"bucket_config": ...}, "needs bucket_config"),
        ({"load": "/no/such"}, "load /no/such: no such folder"),
        ({"lr": ...}, "the field lr is missing"),
        ({"scheduler": dict(type="dpm-solver")}, "'dpm-solver' is incompatible with the model"),
        ({"wandb": True}, "needs the package wandb"),
        ({"mask_ratios": {"identity": 0.2, "image_hed": 0.8}}, "image_hed"),
        ({"sp_size": 2}, "sp_size 2 does not divide 1 processes"),
        ({"seed": 2**32}, "seed '4294967296': should be"),
        ({"gradient_accumulation_steps": 4}, "gradient_accumulation_steps 4 has no effect on the training of STDiT2"),
        ({"validate": True}, "validate True has no effect"),
        ({"vae": dict(type="VideoAutoencoderKL", typo=1)}, "field 'typo'"),
    ],
)
def test_invalid_training_configs_are_rejected(changes, words, folder, tmp_path):
    with pytest.raises((ValueError, OSError), match=words):
        run_training(training_config(folder, tmp_path / "train.py", **changes))
