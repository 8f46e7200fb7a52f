"""`--help` and flag errors of every command, and the commands of the documentation."""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess

import pytest
from command_parsers import COMMANDS, ROOT, SCRIPTS, parser_of

from opensora.cli import main as cli


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_shows_a_help_text_and_its_default(command):
    parser = parser_of(command)
    formatter = parser._get_formatter()
    assert parser.description
    for action in parser._actions:
        assert action.help and action.help.strip(), f"{command} {action.option_strings or action.dest} has no help"
        if action.option_strings and not action.required and not isinstance(action, argparse._HelpAction):
            assert "default" in formatter._expand_help(action), f"{command} {action.option_strings}: no default shown"
    assert parser.format_help()


WITHOUT_MINDSPORE = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as exit:
    heavy = ("mindspore", "transformers", "mmengine", "av", "cv2")
    print("status", exit.code, *[name for name in heavy if name in sys.modules])
"""


@pytest.mark.parametrize("flag, status", [("--help", 0), ("--no-such-flag", 2)])
@pytest.mark.parametrize("command", [name for name in SCRIPTS if not name.startswith("benchmarks/")])
def test_flags_are_parsed_before_mindspore_is_imported(command, flag, status, run):
    finished = run("-c", WITHOUT_MINDSPORE, command, flag)
    assert finished.stdout.splitlines()[-1] == f"status {status}", finished.stderr


def test_contradicting_flags_are_reported_before_mindspore_is_imported(run, tmp_path):
    (tmp_path / "config.json").write_text('{"_class_name": "OpenSoraT2V_v1_3"}')
    sample = (
        f"opensora/sample/sample.py --model_path {tmp_path} --ae_path x --text_encoder_name_1 x --text_prompt x "
        "--height 100"
    )
    train = f"opensora/train/train_causalvae.py --output_dir {tmp_path} --video_path x --validate"
    for command, message in ((sample, "height 100 is not a multiple of 32"), (train, "needs --eval_video_path")):
        finished = run("-c", WITHOUT_MINDSPORE, *command.split())
        assert finished.stdout.splitlines()[-1] == "status 1" and message in finished.stderr


def test_every_command_is_listed():
    listed = subprocess.run(
        ["git", "grep", "-l", "CommandParser(\\|parse_flags(\\|parse_configs(training"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip("not a clone of the repository")
    elsewhere = {
        "opensora/sample/options.py",
        "opensora/sample/search_options.py",
        "opensora/train/encode_options.py",
        "opensora/train/t2v_options.py",
        "opensora/train/inpaint_options.py",
        "opensora/train/vae_options.py",
        "opensora/config/command_line.py",
        "opensora/config/mmengine.py",
        "opensora/cli/config_files.py",
    }
    files = {name for name in listed.stdout.split() if name.endswith(".py") and not name.startswith("tests/")}
    targets = {command.target.partition(":")[0].replace(".", "/") + ".py" for command in cli.COMMANDS.values()}
    assert files - elsewhere <= {*COMMANDS, *targets}


def commands_in(page: str) -> list[list[str]]:
    """The lines of the page's shell blocks as words, continued lines joined."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / page).read_text(), re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [words for line in lines for words in [shlex.split(line, comments=True)] if words]


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "docs/ascend.md",
        "docs/commands.md",
        "docs/config.md",
        "docs/parallelism.md",
        "docs/training.md",
        "docs/performance.md",
        "examples/demo_model/README.md",
    ],
)
def test_commands_of_the_documentation_exist(page):
    for words in commands_in(page):
        files = [word for word in words if re.fullmatch(r"\w[\w./-]*\.(py|sh)", word) and "configs/" not in word]
        if "-m" in words and words[words.index("-m") + 1].startswith("opensora."):
            files.append(words[words.index("-m") + 1].replace(".", "/") + ".py")
        for file in files:
            assert (ROOT / file).is_file(), f"{page}: {file} does not exist"
        commands = [file for file in files if file in COMMANDS]
        if words[0] == "opensora":
            commands = [verb for verb in (" ".join(words[:3]), " ".join(words[:2])) if verb in COMMANDS]
            assert commands, f"{page}: no such command: {' '.join(words)}"
        if commands:
            known = parser_of(commands[0])._option_string_actions
            unknown = [
                word
                for word in words[words.index(commands[0]) if commands[0] in words else 3 :]
                if word.startswith("--") and word.partition("=")[0] not in known and word != "--config"
            ]
            assert not unknown, f"{page}: {commands[0]} has no {unknown}"
        images = [word for word in words if word.startswith("assets/")]
        assert all((ROOT / image).is_file() for image in images)
