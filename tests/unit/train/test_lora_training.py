"""LoRA training as users run it: what its checkpoints hold, that it resumes exactly, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from golden_cases import relative_difference
from made_clips import make_clips
from processes import ROOT, msrun
from tiny_models import make_older_release
from training_program import train
from training_runs import MASK_CONFIG, assert_same_tensors, lora_command, rows, state
from workflow_configs import inference_config, run_inference, run_training, training_config, write_workflow_files

from opensora.checkpoint.lora.files import read_lora, read_settings
from opensora.models import LatteT2V, OpenSoraInpaint_v1_3, OpenSoraT2V, OpenSoraT2V_v1_3, STDiT2
from opensora.models.lora import linear_shapes
from opensora.train.checkpoint_folder import checkpoints

FILE = "lora/pytorch_lora_weights.safetensors"
# Trainings on two processes by name of their output.
PARALLEL_RUNS = {
    "zero2": "--zero_stage 2 --train_batch_size 2 --gradient_checkpointing",
    "zero3-sp2": "--zero_stage 3 --sp_size 2 --train_sp_batch_size 4 --train_batch_size 2",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A release of tiny models, and clips to train on."""
    folder = tmp_path_factory.mktemp("lora")
    make_older_release(folder / "release")
    make_clips(folder / "data", videos=16, images=8, frames=9, size=(32, 32))
    return folder


def train_here(folder: Path, output: str, *flags, generation: str = "v1.3") -> Path:
    """As the command does, in this process."""
    train(lora_command(folder, output, "--dataloader_num_workers", 0, *flags, generation=generation)[1:])
    return folder / output


@pytest.fixture(scope="module")
def uninterrupted(folder) -> Path:
    return train_here(folder, "uninterrupted", "--train_batch_size", 4, "--max_train_steps", 6)


def losses(output: Path) -> np.ndarray:
    return np.array([float(loss) for (loss,) in rows(output, ("loss",))])


def test_checkpoint_holds_the_adapters_alone(folder, uninterrupted):
    checkpoint = uninterrupted / "checkpoint-6"
    assert {str(path.relative_to(checkpoint)) for path in checkpoint.rglob("*") if path.is_file()} == {
        *(FILE, FILE.replace("lora/", "lora_ema/")),
        *("optimizer.safetensors", "state.json", "SHA256SUMS"),
    }
    model = OpenSoraT2V_v1_3.from_pretrained(folder / "release/transformer")
    adapters = read_lora(checkpoint, linear_shapes(model))
    settings = read_settings(checkpoint / "lora")
    assert (settings.rank, settings.alpha, settings.target_modules) == (2, 4, ("to_q", "to_k", "to_v", "to_out.0"))
    assert len(adapters) == 8 * model.config.num_layers
    assert all(lora.rank == 2 and lora.factor == 2 and lora.b.any() for lora in adapters.values())
    elements = sum(lora.a.size + lora.b.size for lora in adapters.values())
    sizes = {name: tensor.size for name, tensor in state(checkpoint).items()}
    assert sum(sizes.values()) == 4 * elements  # the weights, their averages and two moments
    assert losses(uninterrupted).shape == (6,)
    with pytest.raises(FileNotFoundError, match="no LoRA in this folder.*such as .*uninterrupted/checkpoint-6"):
        read_lora(uninterrupted, linear_shapes(model))


def test_killed_run_resumes_exactly(folder, run):
    """With dropout and 8-bit weights, in two parts of which the first is killed while it saves."""
    flags = "--max_train_steps 6 --checkpointing_steps 1 --weights q8_0 --lora_dropout 0.2 --train_batch_size 2"
    whole = train_here(folder, "whole", *flags.split())
    argv = lora_command(folder, "killed", *flags.split(), "--resume_from_checkpoint", "True")
    process = subprocess.Popen(
        [sys.executable, *argv], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    output = folder / "killed"
    while process.poll() is None and not (output / "checkpoint-3.part").exists():
        time.sleep(0.0005)
    was_running = process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert was_running and len(checkpoints(output)) < 6
    finished = run(*argv)
    assert finished.returncode == 0, finished.stderr
    assert "resuming after step" in finished.stderr
    assert rows(output) == rows(whole)
    assert_same_tensors(output / "checkpoint-6", whole / "checkpoint-6")


@pytest.mark.parametrize("flags", ["--weights bf16", "--weights q8_0", "--precision bf16", "--mode 0"])
def test_other_formats_and_modes_follow_float32(flags, folder, uninterrupted):
    try:
        output = train_here(
            folder, flags.replace(" ", ""), "--train_batch_size", 4, "--max_train_steps", 6, *flags.split()
        )
    finally:
        ms.set_context(mode=ms.PYNATIVE_MODE)
    assert np.allclose(losses(output), losses(uninterrupted), rtol=5e-3)


def test_two_processes_equal_one(folder, uninterrupted):
    more = "--use_parallel True --dataloader_num_workers 0 --max_train_steps 6"
    flags = [" ".join(lora_command(folder, name, more, each)[1:]) for name, each in PARALLEL_RUNS.items()]
    finished, logs = msrun(2, folder / "logs", "tests/helpers/training_program.py", *flags)
    assert finished.returncode == 0, logs[0][-3000:]
    expected = state(uninterrupted / "checkpoint-6")
    for name in PARALLEL_RUNS:
        assert np.allclose(losses(folder / name), losses(uninterrupted), rtol=1e-5)
        for tensor, value in state(folder / name / "checkpoint-6").items():
            if tensor.startswith("lora"):
                assert relative_difference(value, expected[tensor]) < 1e-4, (name, tensor)


@pytest.mark.parametrize("generation, model, layers", [("v1.1", LatteT2V, 12 * 3), ("v1.2", OpenSoraT2V, 8 * 3)])
def test_models_of_older_generations_are_adapted_too(generation, model, layers, folder):
    """With 8-bit weights, and resumed exactly."""
    flags = "--weights q8_0 --train_batch_size 4 --start_learning_rate 1e-2 --max_train_steps"
    whole = train_here(folder, f"{generation}-whole", *flags.split(), 8, generation=generation)
    assert losses(whole)[-1] < losses(whole)[0]
    for steps in (3, 8):
        resumed = (*flags.split(), steps, "--resume_from_checkpoint", "True")
        output = train_here(folder, f"{generation}-resumed", *resumed, generation=generation)
    assert_same_tensors(output / "checkpoint-8", whole / "checkpoint-8")
    weights = model.from_pretrained(folder / f"release/transformer_{generation.replace('.', '_')}")
    adapters = read_lora(whole / "checkpoint-8", linear_shapes(weights))
    assert len(adapters) == layers and all(lora.b.any() for lora in adapters.values())


def test_inpaint_model_is_adapted_too(folder, run):
    make_inpaint(folder)
    argv = lora_command(
        folder,
        "inpaint",
        "--mask_config",
        MASK_CONFIG,
        "--dataset",
        "i2v",
        "--max_train_steps",
        3,
        "--default_text_ratio",
        0,
    )
    argv[0] = argv[0].replace("t2v_diffusers", "inpaint")
    argv[argv.index("--pretrained") + 1] = str(folder / "inpaint-weights")
    finished = run(*argv)
    assert finished.returncode == 0, finished.stderr
    model = OpenSoraInpaint_v1_3.from_pretrained(folder / "inpaint-weights")
    adapters = read_lora(folder / "inpaint/checkpoint-3", linear_shapes(model))
    assert len(adapters) == 8 * model.config.num_layers and all(lora.b.any() for lora in adapters.values())
    text_to_video = lora_command(folder, "other", "--max_train_steps", 1)
    text_to_video[0] = argv[0]
    finished = run(*text_to_video, "--mask_config", MASK_CONFIG)
    assert finished.returncode and "error: " in finished.stderr  # its weights for conditioning frames would be random


def make_inpaint(folder: Path) -> None:
    """Weights of an inpaint model whose conditioning layers are not zero."""
    model = OpenSoraInpaint_v1_3.init_from(folder / "release/transformer", ms.float32, None)
    for name, parameter in model.parameters_and_names():
        if "masked_hidden_states.1" in name or "pos_embed_mask.1" in name:
            parameter.set_data(ms.ops.eye(*parameter.shape, ms.float32))
    model.save_pretrained(folder / "inpaint-weights")


@pytest.mark.parametrize(
    "flags, words",
    [
        ("--lora_target_modules to_p", "to_p: the model has no such linear layer"),
        ("--sparse_n 2", "--sparse_n 2 contradicts .*config.json, whose sparse_n is 4"),
        ("--lora_rank 0", "--lora_rank must be 1 or more"),
        ("--lora_alpha 0", "--lora_alpha 0.0: should be above 0"),
        ("--lora_dropout 1", "--lora_dropout 1.0"),
        ("--model OpenSoraT2V_v1_3-2B/122", "--lora_rank adapts pretrained weights"),
        ("--resume_from_checkpoint {folder}/uninterrupted/checkpoint-6 --lora_rank 3", "lora_rank 2 -> 3"),
        ("--resume_from_checkpoint {folder}/uninterrupted/checkpoint-6 --pretrained {folder}", "pretrained .* ->"),
        (
            "--resume_from_checkpoint {folder}/uninterrupted/checkpoint-6 --lora_rank 3 --allow_changed_arguments True",
            "has adapters of other layers or of another rank",
        ),
    ],
)
def test_contradictions_are_refused(flags, words, folder, uninterrupted):
    with pytest.raises(ValueError, match=words):
        train_here(folder, "refused", *flags.format(folder=folder).split())


def test_adapters_need_the_noise_schedule_of_their_weights(folder):
    path = shutil.copytree(folder / "release/transformer", folder / "v1_5") / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "v1_5_scheduler": True}))
    with pytest.raises(ValueError, match="training without --v1_5_scheduler contradicts .*v1_5/config.json"):
        train_here(folder, "refused", "--pretrained", path.parent)


def test_flags_without_a_rank_are_refused(folder):
    argv = lora_command(folder, "refused")[1:]
    at = argv.index("--lora_rank")
    with pytest.raises(ValueError, match="--lora_alpha is for LoRA training: add --lora_rank"):
        train(argv[:at] + argv[at + 2 :])


def test_stdit_from_a_config(tmp_path):
    """Its LoRA resumes exactly and changes the videos of inference.py."""
    write_workflow_files(tmp_path)
    model = STDiT2.from_pretrained(tmp_path / "stdit")
    rng = np.random.default_rng(0)  # a new model's last layers are zero, and so would be all gradients
    weights = {
        name: rng.standard_normal(value.shape).astype(np.float32) / 8 for name, value in model.torch_state().items()
    }
    weights.update(model.torch_buffers())
    model.load_torch_state(weights)
    model.save_pretrained(tmp_path / "stdit")
    config = training_config(tmp_path, tmp_path / "train.py", lora_rank=2, lora_dropout=0.1, grad_checkpoint=False)
    run_training(config, "--lora-alpha", "8", "--weights", "bf16")
    whole = tmp_path / "outputs/000-STDiT2-XL-2"
    run_training(config, "--lora-alpha", "8", "--weights", "bf16", "--load", whole / "checkpoint-3")
    resumed = tmp_path / "outputs/001-STDiT2-XL-2"
    assert rows(resumed) == rows(whole)[3:]
    assert_same_tensors(resumed / "checkpoint-6", whole / "checkpoint-6")
    assert not (whole / "checkpoint-6/lora_ema").exists()
    adapters = read_lora(whole / "checkpoint-6", linear_shapes(model))
    assert len(adapters) == 7 * model.config.depth and all(lora.b.any() for lora in adapters.values())
    images = []
    for name, lora in (("plain", []), ("lora", [f"{whole}/checkpoint-6:30"])):
        changes = dict(prompt=["A square."], num_frames=1, save_dir=str(tmp_path / name), lora=lora)
        run_inference(inference_config(tmp_path, tmp_path / "image.py", **changes))
        images.append((tmp_path / name / "sample_0.png").read_bytes())
    assert images[0] != images[1]
