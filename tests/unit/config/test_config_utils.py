"""Config files and flags, against the golden cases of the published parser."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from golden_cases import case

from opensora.cli.config_files import parse_configs
from opensora.config.mmengine import device_arguments, read_config_file

GOLDEN = case("config_merge", "opensora_cases.json")


@pytest.fixture
def files(tmp_path) -> dict[bool, str]:
    """The golden configs: training? -> path."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(GOLDEN["prompt_file_lines"]))
    paths = {True: tmp_path / "train.py", False: tmp_path / "inference.py"}
    paths[True].write_text(GOLDEN["train_config"])
    paths[False].write_text(GOLDEN["inference_config"].replace("PROMPTS", str(prompts)))
    return {training: str(path) for training, path in paths.items()}


@pytest.mark.parametrize("row", GOLDEN["cases"], ids=lambda row: " ".join(row["argv"])[:40] or "no flags")
def test_flags_override_fields_as_published(row, files):
    argv = [files[row["training"]], *row["argv"]]
    if "error" in row["expect"]:
        with pytest.raises(SystemExit):
            parse_configs(row["training"], argv)
        return
    config = parse_configs(row["training"], argv)
    expected = {**row["expect"], "config": argv[0]}
    if not row["training"]:
        expected["prompt_path"] = config.prompt_path
        assert Path(config.prompt_path).name == "prompts.txt"
    assert json.loads(json.dumps({name: config[name] for name in expected})) == expected


def test_a_flag_overrides_the_file_and_an_absent_one_changes_nothing(files, tmp_path):
    Path(files[False]).write_text("prompt = ['in the file']\nprompt_as_path = True\nmodel = dict(type='m')\nseed = 7\n")
    config = parse_configs(False, [files[False]])
    assert config.prompt == ["in the file"] and config.prompt_as_path is True and config.seed == 7
    lines = tmp_path / "lines.txt"
    lines.write_text("a\nb\nc\n")
    config = parse_configs(
        False, [files[False], "--prompt-path", str(lines), "--prompt-as-path", "no", "--start-index", "-2"]
    )
    assert config.prompt == ["b", "c"] and config.first_index == 1 and config.prompt_as_path is False
    config = parse_configs(False, [files[False], "--prompt_path", str(lines), "--prompt", "x", "--prompt_as_path"])
    assert config.prompt == ["x"] and config.prompt_as_path is True
    assert config.model.type == config["model"]["type"] == "m"


@pytest.mark.parametrize("word, value", [("False", False), ("no", False), ("0", False), ("True", True), ("on", True)])
def test_booleans_are_written_in_several_ways(word, value, files):
    assert parse_configs(True, [files[True], "--wandb", word]).wandb is value


def test_configs_inherit_and_are_executed(tmp_path):
    (tmp_path / "base.py").write_text("model = dict(type='m', depth=2)\nlr = 1e-4\n")
    (tmp_path / "own.py").write_text(
        "import os\nfrom pathlib import Path\n_base_ = ['base.py']\n_steps = 3\n"
        "model = dict(depth=4)\nepochs = _steps * 2\nroot = os.path.join('a', 'b')\n"
    )
    config = read_config_file(tmp_path / "own.py")
    assert config.to_dict() == {"model": {"type": "m", "depth": 4}, "lr": 1e-4, "epochs": 6, "root": "a/b"}


@pytest.mark.parametrize(
    "text, argv, words",
    [
        ("model = dict(", [], "cannot be run: SyntaxError"),
        ("x = 1 / 0", [], "ZeroDivisionError"),
        ("seed = 1", [], "no prompts: give --prompt"),
        ("prompt = ['a']", ["--start-index", "3"], "no prompts are left of 1"),
        ("prompt = ['a']", ["--cfg-scale", "3"], "no scheduler = dict"),
        ("prompt = ['a']", ["--prompt", "prompts.txt"], "'prompts.txt' is a file name: use --prompt-path"),
        ("prompt_path = 'nowhere.txt'", [], "nowhere.txt: no such file of prompts"),
    ],
)
def test_mistakes_are_reported_in_one_line(text, argv, words, tmp_path):
    path = tmp_path / "config.py"
    path.write_text(text)
    with pytest.raises((ValueError, OSError), match=words):
        parse_configs(False, [str(path), *argv])


def test_prompt_files_of_all_formats_are_read(tmp_path):
    """Blank lines keep their index, because names and seeds depend on it; tables have a column of prompts."""
    (tmp_path / "config.py").write_text("seed = 1")
    for name, text, prompts in (
        ("a.txt", "one\n\ntwo\n\n", ["one", "", "two"]),
        ("a.CSV", "id,prompt\n1,one\n", ["one"]),
        ("a.json", '["one", {"text": "two"}]', ["one", "two"]),
        ("plain", "one", ["one"]),
    ):
        (tmp_path / name).write_text(text)
        argv = [str(tmp_path / "config.py"), "--prompt-path", str(tmp_path / name)]
        assert parse_configs(False, argv).prompt == prompts


def test_misspelled_fields_are_noted(files, capsys):
    Path(files[True]).write_text("schedular = dict(type='m')\nlog_evry = 3\nmy_own_helper = 1\n")
    parse_configs(True, [files[True]])
    notes = capsys.readouterr().err
    assert "did you mean scheduler?" in notes and "did you mean log_every?" in notes and "helper" not in notes


def test_dtype_names_map_to_precisions():
    assert device_arguments({"dtype": "half"}).precision == "fp16"
    with pytest.raises(ValueError, match="dtype 'int8' is not one of fp32"):
        device_arguments({"dtype": "int8"})
