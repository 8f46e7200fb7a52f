"""Versions that this project was tested with, and versions that are documented to go together.

Imports nothing heavy, so that `opensora doctor` works where MindSpore cannot be imported.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple, Optional

from opensora.utils.logs import logger

# MindSpore version: the tests that pass with it, on a CPU with Python 3.11. requirements.txt installs the first. From
# 2.7.1 on, arrays of Tensor.asnumpy share the tensor's memory on a CPU: code that keeps one has to copy it.
_UNIT_TESTS = "the tests of operators, models, samplers, pipelines, training and ZeRO"
TESTED_MINDSPORE = {"2.7.0": "all tests", "2.7.1": _UNIT_TESTS, "2.7.2": _UNIT_TESTS}
PYTHON = (3, 9), (3, 11)  # the first and the last minor version that MindSpore 2.7 and this project support
NUMPY = "1.20", "2"  # MindSpore 2.7 needs at least the first, and less than the second


class AscendStack(NamedTuple):
    """Software of an Ascend server that is documented to go together. Nothing here was run on an NPU.

    Driver and firmware packages share the number. The first entries are from the installation guide of MindSpore
    Transformers (section "Confirming Version Matching Relationship"), the last is that of the original Open-Sora-Plan.
    """

    mindspore: str
    cann: str
    driver: str


ASCEND_STACKS = (
    AscendStack("2.7.2", "8.5.0", "25.5.0"),
    AscendStack("2.7.1", "8.3.RC1", "25.3.RC1"),
    AscendStack("2.7.0", "8.2.RC1", "25.2.0"),
    AscendStack("2.3.1", "8.0.RC2", "24.1.RC2"),
)


def numbers_of(version: str) -> tuple[int, ...]:
    """The leading numbers of a version, which compare like it: "8.0.RC2" gives (8, 0)."""
    leading = re.match(r"\d+(\.\d+)*", version.strip())
    return tuple(map(int, leading[0].split("."))) if leading else ()


def base_version(version: str) -> str:
    """Without the suffixes of a repeated or local build: "2.7.1.post1" gives "2.7.1"."""
    return re.sub(r"(\.post\d+|\+.*)$", "", version.strip())


def same_release(found: str, documented: str) -> bool:
    """Whether a version of CANN or of a driver is the documented one or a patch of it, ignoring case."""
    found, documented = found.strip().lower(), documented.lower()
    return found == documented or found.startswith(f"{documented}.")


def documented_stack(mindspore: str) -> Optional[AscendStack]:
    """The documented CANN and driver of a MindSpore version."""
    return next((stack for stack in ASCEND_STACKS if stack.mindspore == base_version(mindspore)), None)


def tested_versions() -> str:
    """The tested versions of MindSpore, for messages."""
    return ", ".join(TESTED_MINDSPORE)


@lru_cache(maxsize=1)
def warn_if_untested(mindspore: str) -> None:
    """Logs a warning, once, for a MindSpore version that this project was not tested with."""
    if base_version(mindspore) not in TESTED_MINDSPORE:
        logger.warning(
            f"MindSpore {mindspore} is not one of the tested {tested_versions()}; "
            "opensora doctor compares its operators with reference values"
        )
