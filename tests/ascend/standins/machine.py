"""The machine that the replacements describe."""

from __future__ import annotations

from dataclasses import dataclass, field

CHIPS = FIRST_GENERATION, A2, A3 = ("ascend910", "ascend910b", "ascend910_93")  # as `get_ascend_soc_version` has them


@dataclass
class Machine:
    """An NPU as the documentation describes it.

    Attributes:
        chip: 910A, Atlas A2 or Atlas A3.
        as_bfloat16: float16 tensors obey the rules of bfloat16, in which a CPU computes nothing.
        all_to_all: False for inference servers such as the 800I A2.
        groups: ranks of the groups that were created, by name.
        precision: settings of `ms.device_context.ascend.op_precision`, by name.
        calls: operators that were called.
    """

    chip: str = A2
    as_bfloat16: bool = False
    all_to_all: bool = True
    groups: dict[str, tuple[int, ...]] = field(default_factory=dict)
    precision: dict[str, object] = field(default_factory=dict)
    calls: set[str] = field(default_factory=set)
