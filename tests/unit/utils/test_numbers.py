"""Numbers from files and command lines."""

from __future__ import annotations

import argparse
import math

import numpy as np
import pytest

from opensora import device
from opensora.cli.config_files import parse_configs
from opensora.config.command_line import parse_with_config
from opensora.config.options import LARGEST_SEED, finite_float
from opensora.utils.numbers import finite_number, is_missing, whole_number


@pytest.mark.parametrize(
    "value, expected",
    [
        (3, 3.0),
        ("3", 3.0),
        (" 23.976 ", 23.976),
        ("24000/1001", 24000 / 1001),
        ("24000 / 1001", 24000 / 1001),
        (1e-30, 1e-30),
        (np.float32(0.5), 0.5),
        (np.int64(7), 7.0),
        ("-2e3", -2000.0),
    ],
)
def test_finite_numbers_are_parsed(value, expected):
    assert finite_number(value, "fps") == expected


NOT_NUMBERS = [
    math.nan,
    math.inf,
    -math.inf,
    1e30,
    10**400,
    -(10**400),
    10**5000,
    "nan",
    "inf",
    "1e999",
    "",
    " ",
    "x",
    "1_000",
    "1/0",
    "1/x",
    "1" * 5000,
    "0x10",
    True,
    False,
    np.bool_(True),
    None,
    [],
    [1],
    {},
    b"1",
    1j,
    np.array([1, 2]),
    "\ud800",
]


@pytest.mark.parametrize("value", NOT_NUMBERS, ids=[str(place) for place in range(len(NOT_NUMBERS))])
def test_other_values_are_rejected_as_numbers(value):
    for check in (finite_number, whole_number):
        with pytest.raises(ValueError, match="^num_frames .*: should be a .*number from ") as error:
            check(value, "num_frames")
        assert str(error.value).isprintable() and len(str(error.value)) < 150


@pytest.mark.parametrize("value, expected", [(48, 48), (48.0, 48), ("48", 48), ("48.0", 48), (np.float64(48), 48)])
def test_whole_numbers_are_parsed(value, expected):
    number = whole_number(value, "num_frames", 1, 100)
    assert number == expected and isinstance(number, int)
    for value in (0, 101, 48.5, "48.5"):
        with pytest.raises(ValueError, match="num_frames .*: should be a whole number from 1 to 100"):
            whole_number(value, "num_frames", 1, 100)


def test_missing_values_are_recognized():
    assert all(map(is_missing, (None, math.nan, "", " \t"))) and not any(map(is_missing, (0, False, "0", [], math.inf)))


@pytest.mark.parametrize("text", ["nan", "inf", "+Infinity", "1e999", "x", ""])
def test_non_finite_flags_are_rejected(text, tmp_path, capsys):
    def parser() -> argparse.ArgumentParser:
        made = argparse.ArgumentParser()
        made.add_argument_group("any").add_argument("--guidance_scale", type=float, default=7.5)
        made.add_argument("--betas", type=float, nargs=2, default=(0.9, 0.999))
        return made

    for argv in (["--guidance_scale", text], ["--betas", "0.9", text]):
        with pytest.raises(SystemExit):
            parse_with_config(parser(), argv)
        assert f"argument {argv[0]}: {text!r} should be a finite number" in capsys.readouterr().err
    config = tmp_path / "config.yaml"
    for content, key in ((f"guidance_scale: '{text}'", "guidance_scale"), (f"betas: [0.9, '{text}']", "betas")):
        config.write_text(content)
        with pytest.raises(ValueError, match=f"config.yaml: {key}: .*should be a finite number"):
            parse_with_config(parser(), ["--config", str(config)])
    config.write_text("betas: [0.5, 0.75]\nguidance_scale: 1e3")
    assert parse_with_config(parser(), ["--config", str(config)]).betas == [0.5, 0.75]
    config.write_text("betas: [0.5]")
    with pytest.raises(ValueError, match="betas: .*should be a list of 2"):
        parse_with_config(parser(), ["--config", str(config)])
    assert finite_float("1e300") == 1e300


@pytest.mark.parametrize("text", ["-1", "4294967296", "1.5", "nan", "x", "9" * 5000])
def test_seeds_out_of_range_are_rejected(text, tmp_path, capsys):
    """All commands accept the range of numpy and MindSpore."""
    parser = argparse.ArgumentParser()
    device.add_arguments(parser)
    (tmp_path / "config.py").write_text("prompt = ['a']")
    for training in (True, False):
        with pytest.raises(SystemExit):
            parse_configs(training, [str(tmp_path / "config.py"), "--seed", text])
        assert "argument --seed: seed '" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parser.parse_args(["--seed", text])
    assert "should be a whole number from 0 to 4294967295" in capsys.readouterr().err
    (tmp_path / "config.yaml").write_text(f"seed: '{text}'")
    with pytest.raises(ValueError, match="config.yaml: seed: .*from 0 to 4294967295"):
        parse_with_config(parser, ["--config", str(tmp_path / "config.yaml")])
    assert (
        parser.parse_args(["--seed", "4294967295"]).seed
        == parse_configs(False, [str(tmp_path / "config.py"), "--seed", "4294967295"]).seed
        == LARGEST_SEED
    )


@pytest.mark.parametrize(
    "line, message",
    [
        ("lr = float('nan')", "lr = nan: should be a finite number"),
        ("lr = 'fast'", "lr 'fast': should be a number"),
        ("scheduler = dict(cfg_scale=float('inf'))", "scheduler.cfg_scale = inf"),
        ("grad_clip = True", "grad_clip True"),
        ("mask_ratios = dict(identity=float('nan'))", "mask_ratios.identity = nan"),
        ("bucket_config = {'144p': {8: (float('nan'), 2)}}", r"bucket_config.144p.8\[0\] = nan"),
    ],
)
def test_non_finite_config_values_are_rejected(line, message, tmp_path):
    (tmp_path / "train.py").write_text(line)
    with pytest.raises(ValueError, match=f"train.py: {message}"):
        parse_configs(True, [str(tmp_path / "train.py")])
    (tmp_path / "train.py").write_text("lr = '2e-5'")
    assert parse_configs(True, [str(tmp_path / "train.py")]).lr == 2e-5
