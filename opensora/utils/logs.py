"""The logger of this project: progress at INFO, and what the user should notice at WARNING, on stderr.

Results go to stdout with `print`. Importing the package configures nothing: as a library it leaves the choice to the
program. Commands call `configure`.
"""

from __future__ import annotations

import logging
import os
import sys

from tqdm import tqdm

from opensora.process.control import rank_name

LEVELS = ("debug", "info", "warning", "error")
LEVEL = "OPENSORA_LOG_LEVEL"  # environment variable, which processes that a command starts inherit

logger = logging.getLogger("opensora")


def configure(level: str = "") -> None:
    """Sends the log to stderr.

    Args:
        level: one of `LEVELS`; by default that of `OPENSORA_LOG_LEVEL`, else info.
    """
    level = level or os.environ.get(LEVEL, "")
    level = level if level in LEVELS else "info"
    os.environ[LEVEL] = level
    logger.setLevel(level.upper())
    logger.propagate = False  # libraries that configure the root logger would repeat every line
    if not any(isinstance(handler, _StderrHandler) for handler in logger.handlers):
        logger.addHandler(_StderrHandler())


class _StderrHandler(logging.Handler):
    """Writes to the `sys.stderr` of the moment, and does not tear progress bars apart."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(_text(record), file=sys.stderr)


def _text(record: logging.LogRecord) -> str:
    """The message; for warnings with the level, and with the rank where there are several processes."""
    words = [record.getMessage()]
    if record.levelno >= logging.WARNING:
        words.insert(0, record.levelname.lower())
    if os.environ.get("MS_WORKER_NUM", "1") != "1" and "MS_ROLE" in os.environ:
        words.insert(0, rank_name())
    return ": ".join(words)
