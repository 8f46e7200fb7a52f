"""The machine that the replacements describe."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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
        autoencoders_running: `as_bfloat16` does not apply to what they call, because they run in float16.
    """

    chip: str = A2
    as_bfloat16: bool = False
    all_to_all: bool = True
    groups: dict[str, tuple[int, ...]] = field(default_factory=dict)
    precision: dict[str, object] = field(default_factory=dict)
    calls: set[str] = field(default_factory=set)
    autoencoders_running: int = 0

    @contextmanager
    def running_an_autoencoder(self) -> Iterator[None]:
        self.autoencoders_running += 1
        try:
            yield
        finally:
            self.autoencoders_running -= 1
