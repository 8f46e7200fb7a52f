"""train_t2v_diffusers.py as users run it, in processes that may be killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from golden_cases import relative_difference
from made_clips import make_clips
from mindspore import Tensor
from processes import ROOT, msrun, msrun_command
from tiny_models import make_release
from training_runs import assert_same, rows, state
from training_runs import t2v_command as flags

from opensora.checkpoint.formats.safetensors import read_safetensors, write_safetensors
from opensora.checkpoint.lazy_tensor import ArrayTensor
from opensora.models import OpenSoraT2V_v1_3
from opensora.parallel.process_group import World
from opensora.train.checkpoint import checkpoints, damage, find_checkpoint
from opensora.train.t2v import check_same_samples
from opensora.train.t2v_options import parse_options
from opensora.train.trainer import MOST_SKIPPED
from opensora.utils.folder_lock import exclusive_folder

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A release of tiny models, and clips to train on."""
    folder = tmp_path_factory.mktemp("training")
    make_release(folder / "release")
    make_clips(folder / "data", videos=24, images=16, frames=9, size=(32, 32))
    return folder


def test_what_a_run_leaves(folder, run):
    finished = run(
        *flags(
            folder,
            "run",
            "--max_train_steps",
            24,
            "--checkpointing_steps",
            8,
            "--validate",
            "--val_data",
            folder / "data/merge_data.txt",
            "--val_interval",
            1,
            "--checkpoints_total_limit",
            2,
            "--train_batch_size",
            4,
            "--lr_scheduler",
            "cosine",
            "--noise_offset",
            "0.02",
        )
    )
    assert finished.returncode == 0, finished.stderr
    output = folder / "run"
    assert "samples used" in finished.stderr and "step 24/24 | loss" in finished.stderr
    assert [path.name for path in checkpoints(output)] == ["checkpoint-24", "checkpoint-16"]
    assert damage(output / "checkpoint-24") is None
    subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=output / "checkpoint-24", check=True)
    losses = [float(loss) for _, loss in rows(output, ("step", "loss"))]
    assert len(losses) == 24 and np.mean(losses[-6:]) < np.mean(losses[:6])
    validation = [float(line.rsplit(" ", 1)[1]) for line in (output / "result_val.log").read_text().splitlines()]
    assert len(validation) == 3 and validation[2] < validation[0]  # two epochs of 10 steps, and the end
    assert list((output / "tensorboard").glob("events*"))
    model = OpenSoraT2V_v1_3.from_pretrained(output / "checkpoint-24/model_ema")
    assert model.config.prediction_type == "v_prediction"
    release = folder / "release"
    sampled = run(
        "opensora/sample/sample.py",
        "--model_path",
        output / "checkpoint-24/model",
        "--ae_path",
        release / "vae",
        "--text_encoder_name_1",
        release / "text",
        "--text_prompt",
        "a square",
        "--num_frames",
        5,
        "--height",
        32,
        "--width",
        32,
        "--num_sampling_steps",
        2,
        "--max_sequence_length",
        64,
        "--save_img_path",
        output / "sampled",
        "--device",
        "CPU",
        "--rescale_betas_zero_snr",
    )
    assert sampled.returncode == 0, sampled.stderr
    assert len(list((output / "sampled").glob("*.mp4"))) == 1


@pytest.fixture(scope="module")
def unbroken(folder, run) -> Path:
    """A run of 12 steps that nothing disturbed."""
    assert run(*flags(folder, "unbroken", "--train_batch_size", 4, "--max_train_steps", 12)).returncode == 0
    return folder / "unbroken"


def test_a_run_that_is_killed_again_and_again_ends_as_if_it_had_not_been(folder, unbroken, run):
    output, command = (
        folder / "killed",
        flags(
            folder,
            "killed",
            "--train_batch_size",
            4,
            "--max_train_steps",
            12,
            "--checkpointing_steps",
            1,
            "--resume_from_checkpoint",
            "True",
        ),
    )
    kills = 0
    for unfinished in ("checkpoint-2.part", "checkpoint-5.part", "checkpoint-9.part/optimizer.safetensors"):
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        while process.poll() is None and not (output / unfinished).exists():
            time.sleep(0.0005)
        kills += process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert kills == 3 and len(checkpoints(output)) < 12
    newest = checkpoints(output)[0]
    with open(newest / "model" / WEIGHTS, "r+b") as file:  # one bit of the newest turns over
        file.seek(-100, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    finished = run(*command)
    assert finished.returncode == 0, finished.stderr
    assert f"{newest.name} is damaged ({Path('model') / WEIGHTS} has changed" in finished.stderr
    assert "going on after step" in finished.stderr
    assert rows(output) == rows(unbroken)
    assert_same(output / "checkpoint-12", unbroken / "checkpoint-12")
    assert not list(output.glob("*.part"))


@pytest.mark.parametrize("processes", [1, 2])
def test_a_signal_saves_the_step_and_the_run_resumes(processes, folder, unbroken, run, tmp_path):
    name = f"terminated{processes}"
    output, more = folder / name, ["--max_train_steps", 12, "--resume_from_checkpoint", "True"]
    if processes == 2:
        command = msrun_command(
            2, tmp_path, *flags(folder, name, *more), "--train_batch_size", "2", "--use_parallel", "True"
        )
    else:
        command = dict(args=[sys.executable, *flags(folder, name, *more, "--train_batch_size", 4)], cwd=ROOT)
    process = subprocess.Popen(**command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (output / "train_log.csv").exists() or len(rows(output)) < 3:
        assert process.poll() is None
        time.sleep(0.02)
    with pytest.raises(ValueError, match="another run writes to this folder"):
        with exclusive_folder(output):
            pass
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == (128 + signal.SIGTERM if processes == 1 else -signal.SIGTERM)
    deadline = time.monotonic() + 60
    while (output / ".lock").exists():  # msrun ends before its ranks
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (saved,) = checkpoints(output)
    assert saved.name == f"checkpoint-{len(rows(output))}" and len(rows(output)) < 12 and damage(saved) is None
    if processes == 1:
        assert run(*flags(folder, name, *more, "--train_batch_size", 4)).returncode == 0
        assert_same(output / "checkpoint-12", unbroken / "checkpoint-12")


@pytest.mark.parametrize(
    "name, more",
    [
        ("zero2", ["--zero_stage", 2, "--train_batch_size", 2]),
        ("zero3-sp2", ["--zero_stage", 3, "--train_batch_size", 2, "--sp_size", 2, "--train_sp_batch_size", 4]),
    ],
    ids=["zero2", "zero3-sp2"],
)
def test_two_processes_train_as_one_and_one_goes_on(name, more, folder, unbroken, run, tmp_path):
    command = flags(folder, name, "--checkpointing_steps", 7, "--resume_from_checkpoint", "True")
    finished, logs = msrun(2, tmp_path, *command, "--max_train_steps", 7, "--use_parallel", "True", *more)
    assert finished.returncode == 0, logs[0][-3000:]
    assert sum("step 4/7" in log for log in logs) == 1
    finished = run(*command, "--max_train_steps", 12, "--train_batch_size", 4)
    assert finished.returncode == 0, finished.stderr
    for actual, expected in zip(rows(folder / name), rows(unbroken)):
        assert np.allclose([float(x) for x in actual], [float(x) for x in expected], rtol=1e-4)
    ours, theirs = state(folder / name / "checkpoint-12"), state(unbroken / "checkpoint-12")
    for tensor in ours:
        # Attention does not change with a key's bias: its gradient is rounding alone, which Adam makes steps of.
        if tensor.startswith("model") and not tensor.endswith("to_k.bias"):
            assert relative_difference(ours[tensor], theirs[tensor]) < 1e-4, tensor


def test_part_of_a_shared_batch_is_gone_on_with(folder, run, tmp_path):
    """Two slices a batch, so a checkpoint after an odd step lies in the middle of one."""
    more = ["--sp_size", 2, "--train_batch_size", 1, "--use_parallel", "True", "--checkpointing_steps", 3]
    for name, steps in (("whole", [5]), ("halves", [3, 5])):
        for part in steps:
            finished, logs = msrun(
                2,
                tmp_path / f"{name}{part}",
                *flags(folder, name, *more),
                "--max_train_steps",
                part,
                "--resume_from_checkpoint",
                "True",
            )
            assert finished.returncode == 0, logs[0][-3000:]
    assert rows(folder / "whole") == rows(folder / "halves")


def test_weights_that_are_not_numbers_stop_the_run(folder, run, tmp_path):
    tensors = {
        name: ArrayTensor(tensor.numpy().copy())
        for name, tensor in read_safetensors(folder / "release/transformer" / WEIGHTS).items()
    }
    tensors["proj_out.bias"].numpy()[:] = np.nan
    write_safetensors(tmp_path / "nan.safetensors", tensors)
    finished = run(
        *flags(
            folder,
            "nan",
            "--pretrained",
            tmp_path / "nan.safetensors",
            "--max_train_steps",
            1000,
            "--dataloader_num_workers",
            0,
            "--num_frames",
            1,
        )
    )
    assert finished.returncode == 1
    assert f"error: no finite gradient in {MOST_SKIPPED} consecutive steps" in finished.stderr
    kept = state(folder / "nan" / f"checkpoint-{MOST_SKIPPED}")
    assert all(np.isfinite(value).all() for name, value in kept.items() if "proj_out.bias" not in name)


def test_weights_of_another_size_name_the_file_and_the_flag(folder, run):
    source = folder / "release/transformer"
    finished = run(*flags(folder, "other", "--pretrained", source, "--model", ROOT / "scripts/demo/transformer"))
    assert finished.returncode == 1 and not (folder / "other").exists()
    assert f"error: {source}: weights do not fit" in finished.stderr and finished.stderr.rstrip().endswith(
        "with --model"
    )


def test_a_checkpoint_that_is_named_must_be_sound(tmp_path):
    assert find_checkpoint(tmp_path, "latest") is None
    with pytest.raises(FileNotFoundError, match="checkpoint-3: no such folder"):
        find_checkpoint(tmp_path, "checkpoint-3")
    (tmp_path / "checkpoint-3").mkdir()
    with pytest.raises(ValueError, match="SHA256SUMS is missing"):
        find_checkpoint(tmp_path, "checkpoint-3")
    with pytest.raises(ValueError, match="all 1 checkpoints"):
        find_checkpoint(tmp_path, "latest")


@pytest.mark.parametrize(
    "more, words",
    [
        (["--parallel_mode", "zero"], "needs --zero_stage"),
        (["--parallel_mode", "data", "--zero_stage", "2"], "not data"),
        (["--validate"], "needs --val_data"),
        (["--num_frames", "6"], "num_frames 6"),
        (["--sp_size", "2", "--train_batch_size", "3", "--train_sp_batch_size", "4"], "6 samples"),
        (["--gradient_accumulation_steps", "0"], "gradient_accumulation_steps 0"),
        (["--ema_decay", "2"], "ema_decay 2"),
        (["--checkpointing_steps", "0"], "checkpointing_steps 0"),
    ],
)
def test_flags_that_contradict(folder, more, words):
    with pytest.raises(ValueError, match=words):
        parse_options(flags(folder, "none", *more)[1:])


def test_processes_that_selected_different_samples():
    """As when files change between the start of one process and that of the next."""
    dataset = SimpleNamespace(index=SimpleNamespace(fingerprint=0xFFFFFF), options=SimpleNamespace(data="data.txt"))
    check_same_samples(World(), dataset)
    others = SimpleNamespace(rank=1, sum=lambda x: Tensor([5.0]))
    with pytest.raises(ValueError, match="data.txt: this process and the first one have selected different samples"):
        check_same_samples(others, dataset)
