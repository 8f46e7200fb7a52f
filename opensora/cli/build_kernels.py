"""opensora build-kernels: compiles the C++ kernels of the CPU ahead of their first use."""

from __future__ import annotations

from collections.abc import Sequence
from subprocess import SubprocessError
from typing import Optional

from opensora.config.command_line import CommandParser
from opensora.errors import UserError
from opensora.ops.cpu.build import build_kernels


def main(argv: Optional[Sequence[str]] = None) -> None:
    parser = CommandParser(description="Compiles the C++ kernels for this CPU and prints the path of the library.")
    parser.parse_args(argv)
    try:
        print(build_kernels().path)
    except SubprocessError as error:
        raise UserError(f"the CPU kernels cannot be compiled: {error}") from error
