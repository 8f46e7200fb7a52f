"""Runs the checks of tests/helpers that are for several processes on the described machines.

    msrun ... tests/ascend/program.py --chip ascend910b --checks parallel_checks --device Ascend --use_parallel True ...

The flags after `--checks` are those of the module. On a CPU all processes share the file system, but no group exists
except the world: the replacements of collectives need all processes in every call.
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/helpers"), str(ROOT / "tests/ascend")]

from opensora.process.supervision import supervise  # noqa: E402

if __name__ == "__main__":
    supervise()  # under msrun, before MindSpore is imported

import pytest  # noqa: E402
from standins import Machine, install  # noqa: E402
from standins.machine import CHIPS  # noqa: E402

from opensora.config.command_line import run_main  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--chip", choices=CHIPS, required=True)
    parser.add_argument("--checks", required=True, help="module of tests/helpers with a function main")
    parser.add_argument("--no_all_to_all", action="store_true", help="as on an inference server")
    parser.add_argument("--calls", nargs="*", default=[], help="operators that the checks must have called")
    args, rest = parser.parse_known_args()
    machine = install(pytest.MonkeyPatch(), Machine(args.chip, all_to_all=not args.no_all_to_all))
    sys.argv[1:] = rest
    import_module(args.checks).main()
    missing = set(args.calls) - machine.calls
    assert not missing, f"{missing} were not called, but {machine.calls}"


if __name__ == "__main__":
    run_main(main)
