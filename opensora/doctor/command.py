"""opensora doctor: checks this machine, prints a table, and exits with 1 if something has failed.

Under msrun all ranks take part in the check of the collectives. Rank 0 runs the other checks before and prints. The
last row of the collectives tells all ranks whether a check has failed on any of them, so that all exit alike.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from opensora.config.command_line import parse_flags
from opensora.config.commands import DoctorOptions
from opensora.config.options import check_choice
from opensora.doctor.checks import CHECKS, FAILED, LAST_ROW, OK, Check, Row, Settings
from opensora.doctor.report import exit_status, report, table, write_json
from opensora.doctor.runner import run_check, without_msrun
from opensora.errors import UserError
from opensora.process import supervision
from opensora.utils.logs import logger

PRINT_SECONDS = 8.0  # that rank 0 has to print, before the others exit; less than SHUTDOWN_SECONDS of supervision
GROUP_SECONDS = 600.0  # the other ranks wait for rank 0, as long as msrun does by default


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    args = parse_flags(
        "Checks this machine: versions, devices, every primitive, a tiny model, and under msrun the collectives.",
        (DoctorOptions,),
        argv,
    )
    for name in args.only or ():
        check_choice("--only", name, [check.name for check in CHECKS])
    if not args.timeout > 0:
        raise UserError(f"--timeout {args.timeout:g}: should be a number of seconds above 0")
    if args.json is not None and Path(args.json).is_dir():
        raise UserError(f"--json {args.json}: is a folder; name a file")
    return args


def main() -> None:
    args = parse_args()
    if args.list:
        width = max(len(check.name) for check in CHECKS)
        print("\n".join(f"{check.name:{width}}  {check.help}" for check in CHECKS))
        return
    role = os.environ.get("MS_ROLE")
    # Under msrun the collectives are never left out, because they carry the exit status to all ranks.
    checks = [
        check for check in CHECKS if args.only is None or check.name in args.only or (check.joins and role is not None)
    ]
    if role == "MS_SCHED":
        run_scheduler(checks, args)
        return
    is_main = role is None or rank() == 0
    started = time.monotonic()
    rows = run_checks(checks, args) if is_main else run_joined(checks, args, Settings(args.device), GROUP_SECONDS)
    status = exit_status(rows)
    if is_main:
        print(table(rows), flush=True)
        if args.json is not None:
            write_json(Path(args.json), report(rows, time.monotonic() - started))
            logger.info(f"report in {args.json}")
    if status:
        if not is_main:
            time.sleep(PRINT_SECONDS)  # the first rank that exits with 1 ends the others
        sys.exit(status)


def rank() -> int:
    """This process's rank under msrun."""
    text = os.environ.get("RANK_ID", "")
    if not text.isdigit():
        raise UserError("RANK_ID is not set: pass --node_rank to msrun on every machine")
    return int(text)


def run_checks(checks: Sequence[Check], args: argparse.Namespace) -> list[Row]:
    """All checks, first those of one process."""
    rows: list[Row] = []
    environment = without_msrun(os.environ)
    for check in checks:
        if not check.joins or "MS_ROLE" not in os.environ:
            rows += run_and_log(check, Settings(args.device), args.timeout, environment)
    if "MS_ROLE" in os.environ:
        rows += run_joined(checks, args, Settings(args.device, failed=bool(exit_status(rows))), args.timeout)
    return rows


def run_joined(
    checks: Sequence[Check], args: argparse.Namespace, settings: Settings, least_timeout: float
) -> list[Row]:
    """The checks of the process group, which every rank runs."""
    rows: list[Row] = []
    for check in checks:
        if check.joins:
            rows += run_and_log(check, settings, max(args.timeout, least_timeout), os.environ)
    return rows


def run_scheduler(checks: Sequence[Check], args: argparse.Namespace) -> None:
    """The scheduler of msrun: its process joins the process group and stays until the ranks have left."""
    for check in checks:
        if check.joins:
            list(run_check(check, Settings(args.device), math.inf, os.environ))


def run_and_log(check: Check, settings: Settings, timeout: float, environment) -> list[Row]:
    started = time.monotonic()
    rows: list[Row] = []
    for row in run_check(check, settings, timeout, environment):
        rows.append(row)
        if row.name == LAST_ROW:  # before another rank exits with 1, which ends this one
            log(check, rows, started)
            supervision.report_status(exit_status([row]))
    if not rows or rows[-1].name != LAST_ROW:
        log(check, rows, started)
    return rows


def log(check: Check, rows: Sequence[Row], started: float) -> None:
    """Logs the counts of a check that began at `started`."""
    wrong = sum(row.status == FAILED for row in rows)
    passed = sum(row.status == OK for row in rows)
    summary = f"{passed} ok" + (f", {wrong} failed" if wrong else "")
    logger.info(f"{check.name}: {summary} ({time.monotonic() - started:.1f} s)")
