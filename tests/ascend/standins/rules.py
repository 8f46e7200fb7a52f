"""Rules of the documentation, each stated once: an operator, what it demands, and where that is written."""

from __future__ import annotations

from dataclasses import dataclass

import mindspore as ms
from mindspore import Tensor

SIXTEEN_BITS = (ms.float16, ms.bfloat16)
FLOATS = (ms.float16, ms.bfloat16, ms.float32)


class Violation(AssertionError):
    """A call that the documentation does not allow."""


@dataclass(frozen=True)
class Rule:
    """What an operator demands, in short, and the place in MindSpore's or CANN's documentation that says so."""

    operator: str
    demand: str
    source: str

    def require(self, holds: bool, *found) -> None:
        """Raises Violation unless `holds`; `found` are the values that break the rule."""
        if not holds:
            raise Violation(f"{self.operator}: {self.demand} ({self.source}); found {', '.join(map(str, found))}")


RULES: list[Rule] = []


def rule(operator: str, demand: str, source: str) -> Rule:
    """A rule that the table lists."""
    RULES.append(Rule(operator, demand, source))
    return RULES[-1]


def is_contiguous(*tensors: Tensor) -> bool:
    return all(tensor.is_contiguous() for tensor in tensors)
