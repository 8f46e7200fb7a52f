"""The process of one check: `python -m opensora.doctor.child REQUEST`; see `runner.run_check`.

It writes one line of JSON per event to the descriptor that the request names: {"start": row}, the `Result` of the row,
and "end" as the last.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
from dataclasses import asdict
from typing import Any, Callable

from opensora.doctor.checks import FAILED, Result, Settings


def main() -> None:
    request = json.loads(sys.argv[1])
    module, _, function = request["target"].partition(":")

    def send(message: Any) -> None:
        os.write(request["descriptor"], f"{json.dumps(message)}\n".encode())

    rows = getattr(importlib.import_module(module), function)(Settings(**request["settings"]))
    for name, run in rows.items():
        if name not in request["skip"]:
            send({"start": name})
            started = time.perf_counter()
            result, output = _result(run)
            send({**asdict(result), "output": output, "seconds": time.perf_counter() - started})
    sys.stdout.flush()
    sys.stderr.flush()
    send("end")


def _result(run: Callable[[], Result]) -> tuple[Result, str]:
    """The result of a row and, if it raised an exception, the traceback."""
    try:
        return run(), ""
    except Exception as error:  # whatever a row raises is its result
        reason = next((line.strip() for line in str(error).splitlines() if line.strip(" -")), "no message")
        return Result(FAILED, f"{type(error).__name__}: {reason:.200}"), traceback.format_exc()


if __name__ == "__main__":
    main()
