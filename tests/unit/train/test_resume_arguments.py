"""Resuming with other arguments: some are silent, some are listed, those that invalidate the state are refused."""

from __future__ import annotations

import argparse
import json

import pytest
from made_clips import make_clips
from tiny_models import VAE, make_release
from training_runs import MASK_CONFIG, rows
from training_runs import inpaint_command as inpaint_flags
from training_runs import t2v_command as flags
from training_runs import vae_command as vae_flags

from opensora.config.mmengine import PLACES, field_names
from opensora.config.options import add_flags
from opensora.train import inpaint_options, t2v_options, vae_options
from opensora.train.arguments import ARGUMENTS, EFFECTS, changes, recorded
from opensora.train.inpaint import InpaintTraining
from opensora.train.t2v import T2VTraining
from opensora.train.trainer import TrainerOptions, run
from opensora.train.vae import VAETraining

COMMANDS = {
    "t2v": (flags, t2v_options, T2VTraining),
    "inpaint": (lambda *more: inpaint_flags(*more, "--mask_config", MASK_CONFIG), inpaint_options, InpaintTraining),
    "vae": (vae_flags, vae_options, VAETraining),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Data and models, and what a step of each command left in a folder of its name."""
    folder = tmp_path_factory.mktemp("arguments")
    make_release(folder / "release")
    make_clips(folder / "data", videos=8, images=8, frames=9, size=(32, 32))
    make_clips(folder / "fewer", videos=6, images=4, frames=9, size=(32, 32))
    (folder / "config.json").write_text(json.dumps({"_class_name": "WFVAEModel", **VAE}))
    for name in COMMANDS:
        train(folder, name)
    return folder


def train(folder, name: str, *more, steps: int = 1) -> None:
    """As the command does, in this process."""
    make_flags, options, training = COMMANDS[name]
    argv = make_flags(
        folder,
        name,
        "--max_train_steps",
        steps,
        "--dataloader_num_workers",
        0,
        "--resume_from_checkpoint",
        "True",
        *more,
    )[1:]
    run(training, *options.parse_options(argv))


def test_every_argument_is_in_the_table_once():
    names = {"processes"} | (set(field_names(training=True)) - set(PLACES))
    for options in (t2v_options, vae_options):
        parser = argparse.ArgumentParser()
        add_flags(parser, *options.OPTIONS)
        names |= {action.dest for action in parser._actions if action.dest != "help"}
    names |= {"mask_config", "default_text_ratio", "add_noise_to_condition"}  # of train_inpaint.py alone
    classified = [name for group in ARGUMENTS.values() for name in group.split()]
    assert len(classified) == len(EFFECTS) and names == {name for name in classified if "." not in name}


@pytest.mark.parametrize(
    "name, more, words",
    [
        ("t2v", ["--seed", 5], "seed 1234 -> 5"),
        ("t2v", ["--num_frames", 9], "num_frames 5 -> 9"),
        (
            "t2v",
            ["--data", "{folder}/fewer/merge_data.txt"],
            "data /.*/data/merge_data.txt -> /.*/fewer/merge_data.txt",
        ),
        ("t2v", ["--sparse_n", 2], "sparse_n 4 -> 2"),
        ("t2v", ["--prediction_type", "epsilon"], "prediction_type"),
        ("inpaint", ["--seed", 5, "--max_hxw", 2048], "max_hxw 1024 -> 2048, seed 1234 -> 5"),
        ("vae", ["--seed", 5], "seed"),
        ("vae", ["--video_num_frames", 9], "video_num_frames 5 -> 9"),
        ("vae", ["--video_path", "{folder}/fewer/clips"], "video_path"),
        ("vae", ["--freeze_encoder"], "freeze_encoder"),
    ],
)
def test_changes_that_are_refused(folder, name, more, words):
    with pytest.raises(ValueError, match=f"checkpoint-1 is of a run with other arguments: {words}") as error:
        train(folder, name, *(str(item).format(folder=folder) for item in more), steps=2)
    assert "--allow_changed_arguments" in str(error.value) and "\n" not in str(error.value)
    assert sorted(path.name for path in folder.joinpath(name).glob("checkpoint-*")) == ["checkpoint-1"]


@pytest.mark.parametrize("name", COMMANDS)
def test_changes_that_are_listed_and_changes_that_are_silent(folder, name, capsys):
    elsewhere = ["--output_dir", folder / "elsewhere", "--resume_from_checkpoint", folder / name / "checkpoint-1"]
    train(
        folder,
        name,
        *elsewhere,
        "--log_interval",
        1,
        "--checkpointing_steps",
        3,
        "--cache_dir",
        folder / "cache2",
        steps=2,
    )
    assert "note: these arguments" not in capsys.readouterr().err
    train(
        folder, name, *elsewhere, "--start_learning_rate", "0.5", "--use_ema", "False", "--precision", "fp32", steps=2
    )
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "note: these arguments" in line]
    assert "start_learning_rate" in line and "-> 0.5" in line and "use_ema true -> false" in line
    assert "precision null -> fp32" in line and line.count("->") == 3


def test_other_data_by_leave(folder, capsys):
    """The place in the old data has no meaning in the new ones."""
    more = [
        "--output_dir",
        folder / "by_leave",
        "--resume_from_checkpoint",
        folder / "t2v/checkpoint-1",
        "--data",
        folder / "fewer/merge_data.txt",
        "--allow_changed_arguments",
    ]
    train(folder, "t2v", *more, steps=3)
    errors = capsys.readouterr().err
    assert "note: these arguments are not those of" in errors and "fewer/merge_data.txt" in errors
    assert "they begin with their first epoch" in errors
    assert [step for step, *_ in rows(folder / "by_leave")] == ["2", "3"]
    saved = json.loads((folder / "by_leave/checkpoint-3/state.json").read_text())
    assert saved["position"]["sampler"]["samples"] == 10 and saved["position"]["batch"] == 3
    assert saved["arguments"]["data"] == str(folder / "fewer/merge_data.txt")


def test_what_is_compared(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.txt").touch()
    config = {"model": {"type": "STDiT2-XL/2", "depth": 2}, "bucket_config": {"144p": {4: (1.0, 2)}}, "lr": 1e-3}
    before = recorded({"data": "data.txt", "model": "OpenSoraT2V_v1_3-2B/122", "betas": (0.9, 0.99), "old": 1})
    assert before == {
        "data": str(tmp_path / "data.txt"),
        "model": "OpenSoraT2V_v1_3-2B/122",
        "betas": [0.9, 0.99],
        "old": 1,
    }
    assert not any(changes(before, recorded({"data": tmp_path / "data.txt", "betas": [0.9, 0.99], "new": 1})).values())
    assert not any(changes(before, recorded(config)).values())  # of another command
    other = recorded({**config, "model": {"type": "STDiT2-XL/2", "qk_norm": True}, "lr": 2e-3})
    found = {effect: [str(change) for change in group] for effect, group in changes(recorded(config), other).items()}
    assert found == {
        "silent": [],
        "listed": ["lr 0.001 -> 0.002"],
        "refused": ["model.depth 2 -> null", "model.qk_norm null -> true"],
    }
    for schedule, effect in (("constant", "silent"), ("cosine", "listed")):
        runs = [{"lr_scheduler": schedule, "max_train_steps": steps} for steps in (10, 20)]
        assert len(changes(*runs)[effect]) == 1


@pytest.mark.parametrize(
    "more, expected",
    [
        ({}, [3, 6, 8]),
        ({"val_interval": 2}, [6, 8]),
        ({"val_interval_steps": 5}, [5, 8]),
        ({"val_interval": 5}, [8]),
        ({"val_interval": 2, "val_interval_steps": 4}, [4, 6, 8]),
    ],
)
def test_intervals_of_validation(more, expected):
    """Eight steps, three to an epoch."""
    options = TrainerOptions("x", max_train_steps=8, validate=True, **more)
    assert [step for step in range(1, 9) if options.validates(step, (step - 1) // 3, step // 3)] == expected
    assert not TrainerOptions("x", **more).validates(3, 0, 1)
