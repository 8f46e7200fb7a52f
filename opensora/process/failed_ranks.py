"""Finds the reason why a run under msrun failed in the logs of its processes.

msrun itself prints the context of every line that looks like an error, from every log. The report has one line per
reason, with the ranks that report it and the path of a log. MindSpore is not imported.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple, Optional

LONGEST_LINE = 1 << 16  # bytes; the rest of a longer line is read as another line
LONGEST_REASON = 500  # characters
# Kinds of reasons, the most reliable first: a message of a command or of the supervision, an uncaught exception, an
# error of MindSpore, which may be a consequence of another rank's failure.
NAMED, UNCAUGHT, LOGGED = range(3)
NAMED_LINE = re.compile(r"ERROR in (?:rank \S+|msrun's scheduler): (.+)")
EXCEPTION_LINE = re.compile(r"(?:\w+\.)*\w*(?:Error|Exception|Interrupt|Exit)\b(?:: .*)?$")
LOGGED_LINE = re.compile(r"\[(?:ERROR|CRITICAL)\]\s*(.+)")


class Reason(NamedTuple):
    """The reason why a process failed, as far as its log shows it."""

    kind: int
    text: str
    log: Path


def failure_report(log_dir: Path, since: float = 0.0) -> list[str]:
    """Lines with the reasons why a run failed.

    If a worker names a cause, the scheduler's errors are left out, because they are its consequences.

    Args:
        since: seconds of the epoch; logs that were last written earlier belong to an earlier run and are ignored.
    """
    workers = _logs(log_dir, "worker_*.log", since)
    reasons = [reason for log in workers for reason in [find_reason(log)] if reason]
    if not any(reason.kind < LOGGED for reason in reasons):
        reasons += [reason for log in _logs(log_dir, "scheduler.log", since) for reason in [find_reason(log)] if reason]
    if not reasons:
        return [f"no log in {log_dir} says why the run failed", *(_last_line(log) for log in workers[:1])]
    most_reliable = min(reason.kind for reason in reasons)
    found: dict[str, list[Path]] = {}
    for reason in reasons:
        if reason.kind == most_reliable:
            found.setdefault(reason.text, []).append(reason.log)
    return [f"{_names(logs)}: {text} (log: {logs[0]})" for text, logs in found.items()]


def find_reason(log: Path) -> Optional[Reason]:
    """The first reason of the most reliable kind in the log of one process, or None."""
    first: dict[int, str] = {}
    in_traceback = False
    with open(log, "rb") as file:
        while line := file.readline(LONGEST_LINE):
            text = line.decode("utf-8", errors="replace").rstrip()
            named, logged = NAMED_LINE.search(text), LOGGED_LINE.search(text)
            if named:
                first.setdefault(NAMED, named.group(1))
            elif text.startswith("Traceback (most recent call last)"):
                in_traceback = True
            elif in_traceback and EXCEPTION_LINE.match(text):
                # The last exception of a chain is the one that ended the process.
                first[UNCAUGHT] = text
                in_traceback = False
            elif logged:
                first.setdefault(LOGGED, logged.group(1))
    if not first:
        return None
    kind = min(first)
    return Reason(kind, first[kind][:LONGEST_REASON], log)


def _logs(log_dir: Path, pattern: str, since: float) -> list[Path]:
    return sorted(
        (log for log in log_dir.glob(pattern) if log.is_file() and log.stat().st_mtime >= since), key=_rank_of
    )


def _rank_of(log: Path) -> int:
    digits = re.findall(r"\d+", log.stem)
    return int(digits[-1]) if digits else -1


def _names(logs: list[Path]) -> str:
    ranks = [_rank_of(log) for log in logs]
    if ranks == [-1]:
        return "msrun's scheduler"
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


def _last_line(log: Path) -> str:
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - LONGEST_LINE))
        lines = [line.strip() for line in file.read().decode("utf-8", errors="replace").splitlines() if line.strip()]
    return f"the last line of {log}: {lines[-1][:LONGEST_REASON] if lines else '(the log is empty)'}"
