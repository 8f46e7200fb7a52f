"""Joining and leaving the process group that msrun started."""

from __future__ import annotations

import atexit
import os
import sys

import mindspore as ms

from opensora.errors import UserError
from opensora.ops.backend import on_ascend, on_cpu
from opensora.ops.cpu.ranks import check_ranks_agree
from opensora.parallel.collectives import barrier
from opensora.process import supervision
from opensora.utils.logs import logger


def join_processes() -> tuple[int, int]:
    """Joins the process group of msrun; returns (rank, number of processes).

    Raises:
        UserError: not under msrun, the processes cannot meet, or they would compute differently.
    """
    if "MS_WORKER_NUM" not in os.environ:
        raise UserError(
            "--use_parallel True needs msrun, as in: "
            "msrun --worker_num=2 --local_worker_num=2 --join=True opensora/sample/sample.py ..."
        )
    if on_ascend():
        raise_timeouts()
    try:
        ms.communication.init()
    except RuntimeError as error:
        raise UserError(_why_not_joined(str(error))) from error
    size = ms.communication.get_group_size()
    supervision.meet_at_end(lambda: barrier(size))
    atexit.register(_leave)
    if on_cpu():
        check_ranks_agree()
    return ms.communication.get_rank(), size


def raise_timeouts() -> None:
    """Has HCCL wait longer than its defaults (600 s to connect, 1836 s in a collective), where the user has set none.

    One process may compile, decode a long video or write a checkpoint while the others wait for it.
    """
    for name, seconds in (("HCCL_CONNECT_TIMEOUT", "1800"), ("HCCL_EXEC_TIMEOUT", "7200")):
        if name not in os.environ:
            os.environ[name] = seconds
            logger.info(f"{name}={seconds} seconds; set it to change how long processes wait for each other")


def _leave() -> None:
    """Leaves the process group: the scheduler takes a process that just ends for a lost one.

    Output is flushed first, because MindSpore may end the process while it leaves.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    ms.communication.release()


def _why_not_joined(error: str) -> str:
    """MindSpore's message of many lines as one line, with what to do."""
    reason = error.split(". ")[0].splitlines()[0]
    if "imed out node" in error:  # of the scheduler, which waits in `init` for the end of the run
        return f"a process ended before the run did; its log, worker_*.log, says why ({reason})"
    address = ":".join(os.environ.get(name, "?") for name in ("MS_SCHED_HOST", "MS_SCHED_PORT"))
    return (
        f"cannot initialize the process group at {address}: most likely another or stale run uses that port; "
        f"pass another --master_port to msrun ({reason})"
    )
