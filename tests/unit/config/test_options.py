"""Options of dataclasses: flags, values from mappings, and the names that are known without MindSpore."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import ClassVar, Optional

import pytest

from opensora.cli.document import PAGES, TABLE, documented, tables
from opensora.config.command_line import CommandParser
from opensora.config.families import (
    DIT_PRESETS,
    FAMILIES,
    OLDER_PRESETS,
    PREDICTION_TYPES,
    SAMPLERS,
    VAES,
    check_family,
)
from opensora.config.options import (
    add_flags,
    check_at_least_one,
    check_choice,
    did_you_mean,
    flag_table,
    flags_of,
    from_mapping,
    option,
    option_of,
)
from opensora.datasets.t2v.options import T2VDataOptions
from opensora.datasets.vae_options import VAEDataOptions
from opensora.errors import UserError
from opensora.models.dit import v1_2
from opensora.models.dit.config import PRESETS
from opensora.models.latte import config as latte_config
from opensora.models.wfvae.config import WFVAEConfig
from opensora.registry import REGISTRY
from opensora.schedulers import PREDICTION_TYPES as SCHEDULER_PREDICTION_TYPES
from opensora.schedulers import SCHEDULERS
from opensora.train.t2v_options import DeviceOptions, T2VTrainOptions
from opensora.train.vae_loss import DISC_LOSSES, LOSS_TYPES
from opensora.train.vae_options import DISC_LOSSES as DISC_LOSS_NAMES
from opensora.train.vae_options import LOSS_TYPES as LOSS_TYPE_NAMES
from opensora.train.vae_options import TrainerOptions, VAETrainerOptions, VAETrainOptions


@dataclass(frozen=True)
class Options:
    group: ClassVar[str] = "things"

    path: str = option(help="a path", flags=("-p",))
    size: int = option(4, "a size", choices=(2, 4))
    scales: Sequence[float] = option((1.0, 2.0), "scales")
    pair: tuple[int, int] = option((1, 2), "two numbers")
    switch: bool = option(False, "a switch")
    word: bool = option(True, "a word", takes_value=True)
    renamed: Optional[int] = option(None, "renamed", name="other_name", flags=("--alias",))
    no_flag: int = option(5, "of files alone", flag=False)
    plain: int = 7


def parse(*argv: str) -> argparse.Namespace:
    parser = CommandParser(description="test")
    add_flags(parser, Options)
    return parser.parse_args(argv)


def test_flags_follow_from_the_fields():
    defaults = parse("-p", "x")
    assert from_mapping(Options, vars(defaults)) == Options("x")
    args = parse(*"--path x --size 2 --scales 3 --pair 5 6 --switch --word no --alias 8".split())
    assert from_mapping(Options, vars(args)) == Options("x", 2, [3.0], [5, 6], True, False, 8)
    assert not hasattr(args, "no_flag") and not hasattr(args, "plain")


@pytest.mark.parametrize(
    "argv, message",
    [
        ("", "required: -p/--path"),
        ("-p x --size 3", "invalid choice: 3"),
        ("-p x --scales nan", "'nan' should be a finite number"),
        ("-p x --word maybe", "'maybe' is neither True nor False"),
        ("-p x --pair 1", "expected 2 arguments"),
    ],
)
def test_wrong_flags_are_refused(argv, message, capsys):
    with pytest.raises(SystemExit):
        parse(*argv.split())
    assert message in capsys.readouterr().err


def test_values_from_a_mapping_are_checked_by_name():
    assert from_mapping(Options, {"path": "x", "other_name": 3, "unknown": 1}).renamed == 3
    assert from_mapping(Options, {"path": "x"}, plain=9).plain == 9
    with pytest.raises(UserError, match=r"file.py has no field 'siz' \(did you mean size\?\)"):
        from_mapping(Options, {"path": "x", "siz": 1}, "file.py")
    with pytest.raises(UserError, match="file.py has no field 'zzz'; its fields are path, size"):
        from_mapping(Options, {"path": "x", "zzz": 1}, "file.py")
    with pytest.raises(UserError, match="file.py: the field path is missing"):
        from_mapping(Options, {}, "file.py")


def test_an_option_is_reused_with_another_default():
    @dataclass(frozen=True)
    class Derived(Options):
        size: int = option_of(Options, "size", 2, help="another text")

    (flag,) = [flag for flag in flags_of(Derived) if flag.name == "size"]
    assert (flag.default, flag.option.help, flag.option.choices) == (2, "another text", (2, 4))


def test_flags_over_a_config_are_absent_unless_given():
    parser = CommandParser(description="test", argument_default=argparse.SUPPRESS)
    add_flags(parser, Options, over_config=True)
    assert vars(parser.parse_args([])) == {}
    assert vars(parser.parse_args(["--other-name", "1", "--word"])) == {"other_name": 1, "word": True}
    assert vars(parser.parse_args(["--other_name", "1"])) == {"other_name": 1}


def test_table_has_a_row_for_each_flag():
    rows = flag_table(Options).splitlines()[2:]
    assert rows[0] == "| `-p`, `--path` | required | a path |"
    assert rows[2] == "| `--scales` | `1.0 2.0` | scales |"
    assert len(rows) == len(fields(Options)) - 2  # without no_flag and plain


def test_checks_name_the_option_and_the_remedy():
    check_choice("--ae", "a", ("a", "b"))
    with pytest.raises(UserError, match="--ae 'c' is not one of a, b"):
        check_choice("--ae", "c", ("a", "b"))
    with pytest.raises(UserError, match="--size must be 1 or more, not 0"):
        check_at_least_one(Options("x", size=0), "renamed", "size")
    assert did_you_mean("sise", ("size", "path")) == " (did you mean size?)" and not did_you_mean("q", ("size",))


def test_names_are_those_of_the_objects():
    """The names are listed apart from the objects, which need MindSpore."""
    assert SAMPLERS == tuple(SCHEDULERS)
    assert set(DIT_PRESETS) == set(PRESETS)
    assert set(OLDER_PRESETS) == {*v1_2.PRESETS, *latte_config.PRESETS}
    assert PREDICTION_TYPES == SCHEDULER_PREDICTION_TYPES
    assert (DISC_LOSS_NAMES, LOSS_TYPE_NAMES) == (tuple(DISC_LOSSES), tuple(LOSS_TYPES))
    default = WFVAEConfig()
    assert VAES["WFVAEModel_D8_4x8x8"] == (default.latent_dim, default.temporal_stride, default.spatial_stride)
    for model, family in FAMILIES.items():
        names = {*family.vae, *family.text_encoder, *family.samplers, *family.objectives, *family.dataset}
        assert names - {"T2VDataset"} <= set(REGISTRY) and model in REGISTRY


def test_types_that_do_not_go_together_are_refused():
    types = {"model": "STDiT2-XL/2", "vae": "VideoAutoencoderKL", "text_encoder": "t5", "scheduler": "dpm-solver"}
    config = {name: {"type": kind} for name, kind in types.items()}
    check_family(config, training=False)
    config["dataset"] = {"type": "VideoTextDataset"}
    with pytest.raises(UserError, match="scheduler type 'dpm-solver' is incompatible with the model STDiT2-XL/2"):
        check_family(config, training=True)


def test_defaults_of_training_are_the_published_ones():
    data = T2VDataOptions("data.txt", max_hxw=1024)
    options = T2VTrainOptions(data, "vae", model="m", text_encoder_name_1="t")
    assert options.seed == DeviceOptions.seed == VAETrainOptions.seed == 1234
    assert (options.adamw.adam_epsilon, options.max_grad_norm, options.zero_stage) == (1e-15, 1.0, 0)
    vae = VAETrainOptions(VAEDataOptions("videos"), model_config="c")
    assert (vae.adamw.adam_epsilon, vae.adamw.adam_weight_decay, vae.disc_adamw.adam_weight_decay) == (1e-8, 1e-4, 1e-2)
    assert vae.loss.perceptual_weight == 0.0 and vae.max_grad_norm is None
    trainer = VAETrainerOptions("out")
    assert (trainer.start_learning_rate, trainer.checkpointing_steps, trainer.val_interval_steps) == (1e-5, 1000, 1000)
    assert TrainerOptions("out").start_learning_rate == 1e-4


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_of_the_documentation_are_up_to_date(page):
    text = page.read_text(encoding="utf-8")
    assert documented(text) == text, "run python -m opensora.cli.document"


def test_every_table_is_in_the_documentation():
    found = {name for page in PAGES for name in TABLE.findall(page.read_text(encoding="utf-8"))}
    assert found == set(tables())
