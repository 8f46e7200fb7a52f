"""The log of the commands, and the errors that end them."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest
from processes import ROOT

from opensora.config.command_line import CommandParser
from opensora.utils import logs

COMMAND = """
import sys
from opensora.errors import UserError
from opensora.config.command_line import CommandParser, run_main
from opensora.utils.logs import logger

def main():
    parser = CommandParser(description="A command.")
    parser.add_argument("--fail", choices=("user", "file", "socket", "bug", "foreign"))
    fail = parser.parse_args().fail
    logger.debug("details")
    logger.info("100% of the work")
    logger.warning("a.mp4 is damaged")
    print("result")
    if fail == "user":
        raise UserError("b.json:\\n  is empty")
    if fail == "file":
        open("missing.txt")
    if fail == "socket":
        raise ConnectionRefusedError("c.org: refused")
    if fail == "bug":
        {}["key"]
    if fail == "foreign":
        int("seven")

run_main(main)
"""


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", COMMAND, *arguments],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    "flags, environment, lines",
    [
        ("", {}, ["100% of the work", "warning: a.mp4 is damaged"]),
        ("--log_level debug", {}, ["details", "100% of the work", "warning: a.mp4 is damaged"]),
        ("--log_level warning", {}, ["warning: a.mp4 is damaged"]),
        ("--log_level error", {}, []),
        ("", {"OPENSORA_LOG_LEVEL": "warning"}, ["warning: a.mp4 is damaged"]),
        ("--log_level info", {"OPENSORA_LOG_LEVEL": "error"}, ["100% of the work", "warning: a.mp4 is damaged"]),
    ],
)
def test_log_goes_to_stderr_and_results_to_stdout(flags, environment, lines):
    finished = command(*flags.split(), **environment)
    assert (finished.returncode, finished.stdout) == (0, "result\n")
    assert finished.stderr.splitlines() == lines


def test_log_names_the_rank(monkeypatch, capsys):
    for name, value in (("MS_ROLE", "MS_WORKER"), ("MS_WORKER_NUM", "2"), ("RANK_ID", "1")):
        monkeypatch.setenv(name, value)
    logs.logger.warning("a.mp4 is damaged")
    assert capsys.readouterr().err == "rank 1: warning: a.mp4 is damaged\n"


def test_unknown_log_level_is_rejected(capsys):
    with pytest.raises(SystemExit):
        CommandParser(description="A command.").parse_args(["--log_level", "loud"])
    assert "argument --log_level: invalid choice: 'loud'" in capsys.readouterr().err


def test_log_level_is_no_argument_of_the_work():
    assert vars(CommandParser(description="A command.").parse_args(["--log_level", "error"])) == {}
    assert logs.logger.level == logging.ERROR


def test_configuring_twice_logs_once(capsys):
    logs.configure()
    logs.logger.info("once")
    assert capsys.readouterr().err == "once\n"


@pytest.mark.parametrize(
    "fail, line",
    [
        ("user", "error: b.json: is empty"),
        ("file", "error: missing.txt: No such file or directory"),
        ("socket", "error: c.org: refused"),
    ],
)
def test_error_of_the_user_is_one_line(fail, line):
    finished = command("--fail", fail, "--log_level", "error")
    assert (finished.returncode, finished.stdout, finished.stderr) == (1, "result\n", f"{line}\n")
    debugged = command("--fail", fail, "--log_level", "error", OPENSORA_DEBUG="1")
    assert debugged.returncode == 1 and debugged.stderr.startswith("Traceback (most recent call last):")
    assert debugged.stderr.splitlines()[-1] == line


@pytest.mark.parametrize("fail, error", [("bug", "KeyError: 'key'"), ("foreign", "ValueError: invalid literal")])
def test_bug_keeps_its_traceback(fail, error):
    finished = command("--fail", fail)
    assert finished.returncode == 1
    assert "Traceback (most recent call last):" in finished.stderr and error in finished.stderr.splitlines()[-1]


def test_child_processes_inherit_the_level():
    logs.configure("error")
    program = f"import os; print(os.environ[{logs.LEVEL!r}])"
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "error\n"
