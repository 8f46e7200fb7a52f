"""`--help` of every command."""
from __future__ import annotations

import argparse
import subprocess

import pytest
from command_parsers import COMMANDS, ROOT, parser_of


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_has_a_text_and_its_default(command):
    parser = parser_of(command)
    formatter = parser._get_formatter()
    assert parser.description, "a command says what it does"
    for action in parser._actions:
        assert action.help and action.help.strip(), f"{command} {action.option_strings or action.dest} has no help"
        if action.option_strings and not action.required and not isinstance(action, argparse._HelpAction):
            assert "default" in formatter._expand_help(action), f"{command} {action.option_strings}: no default shown"
    assert parser.format_help()


def test_no_command_is_left_out():
    listed = subprocess.run(["git", "grep", "-l", "CommandParser(description\\|parse_configs(training"], cwd=ROOT,
                            capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a clone of the repository")
    elsewhere = {"opensora/sample/options.py", "opensora/train/t2v_options.py", "opensora/train/inpaint_options.py",
                 "opensora/train/vae_options.py", "opensora/utils/cli.py", "opensora/utils/config_utils.py",
                 "opensora/sample/config_inference.py", "opensora/train/config_run.py"}
    files = {name for name in listed.stdout.split() if name.endswith(".py") and not name.startswith("tests/")}
    assert files - elsewhere <= set(COMMANDS)
