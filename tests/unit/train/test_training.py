"""train_t2v_diffusers.py as users run it, in processes that may be killed."""

from __future__ import annotations

import json
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
from golden_eval import write_clip
from made_clips import make_clips
from mindspore import Tensor
from processes import ROOT, msrun, msrun_command
from tiny_models import make_older_release
from training_program import train
from training_runs import assert_same, rows, state
from training_runs import t2v_command as command

from opensora.checkpoint.formats.safetensors import read_safetensors, write_safetensors
from opensora.checkpoint.lazy_tensor import ArrayTensor
from opensora.models import OpenSoraT2V_v1_3
from opensora.parallel.process_group import World
from opensora.train.checkpoint_folder import checkpoints, find_checkpoint, find_corruption
from opensora.train.t2v import check_same_samples
from opensora.train.t2v_options import parse_options
from opensora.train.trainer import MOST_SKIPPED
from opensora.utils.folder_lock import exclusive_folder

WEIGHTS = "diffusion_pytorch_model.safetensors"
# Trainings on two processes by name of their output; without train_sp_batch_size a batch of 2 has two micro-batches.
PARALLEL_RUNS = {
    "zero2": "--zero_stage 2 --train_batch_size 2 --max_train_steps 4 {samples}",
    "zero3-sp2": "--zero_stage 3 --sp_size 2 --train_sp_batch_size 4 --train_batch_size 2 --max_train_steps 4",
    "whole": "--sp_size 2 --checkpointing_steps 3 --max_train_steps 5",
    "resumed": "--sp_size 2 --max_train_steps 5 --resume_from_checkpoint {folder}/whole/checkpoint-3",
}
# Videos that validation samples; three, so that one of two processes has one more.
SAMPLES = (
    "--validate --val_data {folder}/data/merge_data.txt --val_samples 3 --val_num_sampling_steps 2 "
    "--val_guidance_scale 3 --clip_path {folder}/clip"
)
# Those of older models, with images beside the videos; OLDER_STEPS on one process, of which two processes run half.
OLDER, OLDER_STEPS = ("v1.1", "v1.2"), 8
JOINT = "--max_image_size 32 --use_image_num 2 --use_img_from_vid"
SHARED = f"{JOINT} --zero_stage 2 --sp_size 2 --train_sp_batch_size 4 --train_batch_size 2"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A release of tiny models, and clips to train on."""
    folder = tmp_path_factory.mktemp("training")
    make_older_release(folder / "release")
    write_clip(folder / "clip")
    make_clips(folder / "data", videos=24, images=16, frames=9, size=(32, 32))
    return folder


def train_here(folder: Path, output: str, flags: str, generation: str = "v1.3") -> None:
    """As the command does, in this process."""
    train(command(folder, output, "--dataloader_num_workers", 0, *flags.split(), generation=generation)[1:])


def test_run_writes_checkpoints_log_and_validation(folder, run):
    flags = f"--max_train_steps 24 --checkpointing_steps 8 --checkpoints_total_limit 2 --train_batch_size 4 --validate \
        --val_data {folder}/data/merge_data.txt --val_interval 1 --lr_scheduler cosine --noise_offset 0.02"
    finished = run(*command(folder, "run", *flags.split()))
    assert finished.returncode == 0, finished.stderr
    output = folder / "run"
    assert "samples used" in finished.stderr and "step 24/24 | loss" in finished.stderr
    assert [path.name for path in checkpoints(output)] == ["checkpoint-24", "checkpoint-16"]
    assert find_corruption(output / "checkpoint-24") is None
    subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=output / "checkpoint-24", check=True)
    losses = [float(loss) for _, loss in rows(output, ("step", "loss"))]
    assert len(losses) == 24 and np.mean(losses[-6:]) < np.mean(losses[:6])
    validation = [float(line.rsplit(" ", 1)[1]) for line in (output / "result_val.log").read_text().splitlines()]
    assert len(validation) == 3 and validation[2] < validation[0]  # after two epochs of 10 steps, and at the end
    assert list((output / "tensorboard").glob("events*"))
    model = OpenSoraT2V_v1_3.from_pretrained(output / "checkpoint-24/model_ema")
    assert (model.config.prediction_type, model.config.rescale_betas_zero_snr) == ("v_prediction", True)
    assert model.config.v1_5_scheduler is None  # only what was used is recorded
    flags = f"--model_path {output}/checkpoint-24/model --ae_path {folder}/release/vae --text_encoder_name_1 \
        {folder}/release/text --text_prompt square --num_frames 5 --height 32 --width 32 --num_sampling_steps 2 \
        --max_sequence_length 64 --save_img_path {output}/sampled --device CPU"
    sampled = run("opensora/sample/sample.py", *flags.split())
    assert sampled.returncode == 0, sampled.stderr
    assert len(list((output / "sampled").glob("*.mp4"))) == 1


@pytest.mark.parametrize("precision, most", [("fp16", 2e-3), ("bf16", 1e-2)])
def test_training_in_16_bits_follows_float32(precision, most, folder, uninterrupted):
    train_here(folder, precision, f"--train_batch_size 4 --max_train_steps 4 --precision {precision}")
    found, expected = (
        np.array(rows(folder / name, ("loss", "grad_norm"))[:4], float) for name in (precision, uninterrupted.name)
    )
    assert (np.abs(found / expected - 1)[:, 0] < most).all() and (np.abs(found / expected - 1)[:, 1] < 10 * most).all()
    assert (found != expected).any()
    weights = read_safetensors(find_checkpoint(folder / precision, "latest") / "model" / WEIGHTS)
    assert {tensor.dtype for tensor in weights.values()} == {"F32"}  # master weights


@pytest.fixture(scope="module")
def uninterrupted(folder, run) -> Path:
    """The output of an uninterrupted run of 12 steps."""
    finished = run(*command(folder, "uninterrupted", "--train_batch_size", 4, "--max_train_steps", 12))
    assert finished.returncode == 0, finished.stderr
    return folder / "uninterrupted"


def test_run_killed_repeatedly_equals_uninterrupted_run(folder, uninterrupted, run):
    flags = "--train_batch_size 4 --max_train_steps 12 --checkpointing_steps 1 --resume_from_checkpoint True"
    output, argv = folder / "killed", command(folder, "killed", *flags.split())
    kills = 0
    for unfinished in ("checkpoint-2.part", "checkpoint-7.part/optimizer.safetensors"):
        process = subprocess.Popen(
            [sys.executable, *argv],
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
    assert kills == 2 and len(checkpoints(output)) < 12
    newest = checkpoints(output)[0]
    with open(newest / "model" / WEIGHTS, "r+b") as file:  # flip one bit of the newest
        file.seek(-100, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    finished = run(*argv)
    assert finished.returncode == 0, finished.stderr
    assert f"{newest.name} is corrupt ({Path('model') / WEIGHTS} has changed" in finished.stderr
    assert "resuming after step" in finished.stderr
    assert rows(output) == rows(uninterrupted)
    assert_same(output / "checkpoint-12", uninterrupted / "checkpoint-12")
    assert not list(output.glob("*.part"))


@pytest.mark.parametrize("processes", [1, 2])
def test_signal_saves_checkpoint_and_run_resumes(processes, folder, uninterrupted, run, tmp_path):
    name = f"terminated{processes}"
    output, argv = folder / name, command(folder, name, *"--max_train_steps 12 --resume_from_checkpoint True".split())
    if processes == 2:
        popen = msrun_command(2, tmp_path, *argv, "--train_batch_size", 2, "--use_parallel", "True")
    else:
        popen = dict(args=[sys.executable, *argv, "--train_batch_size", "4"], cwd=ROOT)
    process = subprocess.Popen(**popen, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
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
    assert saved.name == f"checkpoint-{len(rows(output))}" and len(rows(output)) < 12 and find_corruption(saved) is None
    if processes == 1:
        assert run(*argv, "--train_batch_size", 4).returncode == 0
        assert_same(output / "checkpoint-12", uninterrupted / "checkpoint-12")


@pytest.fixture(scope="module")
def parallel_runs(folder) -> list[str]:
    """Runs `PARALLEL_RUNS`; returns the logs of both processes."""
    flags = [
        " ".join(
            [
                *command(folder, name, *"--use_parallel True --dataloader_num_workers 0".split())[1:],
                more.format(folder=folder, samples=SAMPLES.format(folder=folder)),
            ]
        )
        for name, more in PARALLEL_RUNS.items()
    ] + [
        " ".join(
            command(
                folder,
                f"{generation}-shared",
                *f"--use_parallel True --dataloader_num_workers 0 {SHARED}".split(),
                *("--max_train_steps", OLDER_STEPS // 2),
                generation=generation,
            )[1:]
        )
        for generation in OLDER
    ]
    finished, logs = msrun(2, folder / "logs", "tests/helpers/training_program.py", *flags)
    assert finished.returncode == 0, logs[0][-3000:]
    return logs


@pytest.mark.parametrize("name", ["zero2", "zero3-sp2"])
def test_two_processes_equal_one_process_which_can_resume(name, folder, uninterrupted, parallel_runs):
    assert sum("step 4/4" in log for log in parallel_runs) == 1  # only the main process prints
    train_here(folder, name, "--resume_from_checkpoint True --max_train_steps 12 --train_batch_size 4")
    assert_close(folder / name, uninterrupted, 12)


def test_processes_share_the_samples_of_validation(folder, parallel_runs):
    train_here(folder, "samples", f"--train_batch_size 4 --max_train_steps 4 {SAMPLES.format(folder=folder)}")
    (alone,), (shared,) = (validation_metrics(folder / name) for name in ("samples", "zero2"))
    assert set(alone) == {"loss", "clipsim"} and -1 < alone["clipsim"] < 1
    assert shared["clipsim"] == pytest.approx(alone["clipsim"], rel=1e-3)
    assert (folder / "samples/train_log.csv").read_text().count("\n") == 5


def validation_metrics(run: Path) -> list[dict[str, float]]:
    """The metrics of each validation."""
    lines = (run / "result_val.log").read_text().splitlines()
    return [{name: float(value) for name, value in (part.split() for part in line.split(" | ")[1:])} for line in lines]


def assert_close(run: Path, expected: Path, steps: int) -> None:
    """The logs and the weights of two runs agree but for rounding."""
    assert len(rows(run)) == len(rows(expected)) == steps
    assert np.allclose(np.array(rows(run), float), np.array(rows(expected), float), rtol=1e-4)
    ours, theirs = state(run / f"checkpoint-{steps}"), state(expected / f"checkpoint-{steps}")
    for tensor in ours:
        # Attention is invariant to a key's bias: its gradient is rounding error, which Adam scales up to full steps.
        if tensor.startswith("model") and not tensor.endswith("to_k.bias") and theirs[tensor].any():
            assert relative_difference(ours[tensor], theirs[tensor]) < 1e-4, tensor


@pytest.fixture(scope="module", params=OLDER)
def older(request, folder) -> tuple[str, Path]:
    """An older generation, and the output of its run on one process."""
    flags = f"{JOINT} --train_batch_size 4 --max_train_steps {OLDER_STEPS}"
    train_here(folder, f"{request.param}-whole", flags, request.param)
    return request.param, folder / f"{request.param}-whole"


def test_older_generation_learns_and_resumes_exactly(folder, older):
    generation, whole = older
    losses = [float(loss) for (loss,) in rows(whole, ("loss",))]
    assert losses[-1] < 0.8 * losses[0]
    flags = f"{JOINT} --train_batch_size 4 --resume_from_checkpoint True --max_train_steps"
    for steps in (3, OLDER_STEPS):
        train_here(folder, f"{generation}-resumed", f"{flags} {steps}", generation)
    assert rows(folder / f"{generation}-resumed") == rows(whole)
    assert_same(folder / f"{generation}-resumed/checkpoint-{OLDER_STEPS}", whole / f"checkpoint-{OLDER_STEPS}")


@pytest.mark.slow
def test_older_generation_in_graph_mode(folder, older):
    generation, whole = older
    train_here(folder, f"{generation}-graph", f"{JOINT} --train_batch_size 4 --max_train_steps 3 --mode 0", generation)
    columns = ("loss", "grad_norm")
    graph, expected = (np.array(rows(path, columns)[:3], float) for path in (folder / f"{generation}-graph", whole))
    assert np.allclose(graph, expected, rtol=1e-4)


def test_older_generation_on_two_processes_equals_one(folder, older, parallel_runs):
    """With sequence parallelism and ZeRO; one process trains to the end."""
    generation, whole = older
    name = f"{generation}-shared"
    flags = f"{JOINT} --train_batch_size 4 --resume_from_checkpoint True --max_train_steps {OLDER_STEPS}"
    train_here(folder, name, flags, generation)
    assert_close(folder / name, whole, OLDER_STEPS)


def test_resume_in_the_middle_of_a_batch_equals_uninterrupted_run(folder, parallel_runs):
    """A batch has two micro-batches, so the checkpoint of step 3 is in the middle of one."""
    position = json.loads((folder / "whole/checkpoint-3/state.json").read_text())["position"]
    assert position["slices"] == 1
    assert len(rows(folder / "whole")) == 5 and rows(folder / "resumed") == rows(folder / "whole")[3:]


def test_nan_weights_stop_the_run(folder, tmp_path):
    tensors = {
        name: ArrayTensor(tensor.numpy().copy())
        for name, tensor in read_safetensors(folder / "release/transformer" / WEIGHTS).items()
    }
    tensors["proj_out.bias"].numpy()[:] = np.nan
    write_safetensors(tmp_path / "nan.safetensors", tensors)
    with pytest.raises(ValueError, match=f"^{MOST_SKIPPED} consecutive steps with non-finite gradients"):
        train_here(folder, "nan", f"--pretrained {tmp_path}/nan.safetensors --max_train_steps 1000 --num_frames 1")
    saved = state(folder / "nan" / f"checkpoint-{MOST_SKIPPED}")
    assert all(np.isfinite(value).all() for name, value in saved.items() if "proj_out.bias" not in name)


def test_error_of_mismatched_weights_names_file_and_flag(folder):
    source = folder / "release/transformer"
    with pytest.raises(ValueError, match=f"^{source}: weights do not fit.* with --model$"):
        train_here(folder, "other", f"--pretrained {source} --model {ROOT}/scripts/demo/transformer")
    assert not (folder / "other").exists()


def test_named_checkpoint_must_be_intact(tmp_path):
    assert find_checkpoint(tmp_path, "latest") is None
    with pytest.raises(FileNotFoundError, match="checkpoint-3: no such folder"):
        find_checkpoint(tmp_path, "checkpoint-3")
    (tmp_path / "checkpoint-3").mkdir()
    with pytest.raises(ValueError, match="SHA256SUMS is missing"):
        find_checkpoint(tmp_path, "checkpoint-3")
    with pytest.raises(ValueError, match="all 1 checkpoints"):
        find_checkpoint(tmp_path, "latest")


@pytest.mark.parametrize(
    "flags, words",
    [
        ("--parallel_mode zero", "needs --zero_stage"),
        ("--parallel_mode data --zero_stage 2", "not data"),
        ("--validate", "needs --val_data"),
        ("--num_frames 6", "num_frames 6"),
        ("--sp_size 2 --train_batch_size 3 --train_sp_batch_size 4", "6 samples"),
        ("--gradient_accumulation_steps 0", "gradient_accumulation_steps .*0"),
        ("--ema_decay 2", "ema_decay 2"),
        ("--checkpointing_steps 0", "checkpointing_steps .*0"),
    ],
)
def test_contradictory_flags_are_rejected(folder, flags, words):
    with pytest.raises(ValueError, match=words):
        parse_options(command(folder, "none", *flags.split())[1:])


def test_processes_with_different_samples_are_rejected():
    """As if files had changed between the starts of two processes."""
    dataset = SimpleNamespace(index=SimpleNamespace(fingerprint=0xFFFFFF), options=SimpleNamespace(file="data.txt"))
    check_same_samples(World(), dataset)
    others = SimpleNamespace(rank=1, all_reduce=lambda x: Tensor([5.0]))
    with pytest.raises(ValueError, match="data.txt: this process and the first one have selected different samples"):
        check_same_samples(others, dataset)
