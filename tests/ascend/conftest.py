"""The fixture that makes the project compute on a described Ascend machine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Callable

import mindspore as ms
import pytest
from standins import Machine, install


@pytest.fixture
def ascend() -> Iterator[Callable[..., Machine]]:
    """`ascend(chip, as_bfloat16, all_to_all)` switches to that `Machine` until the test ends; a CPU before."""
    assert ms.get_context("mode") == ms.PYNATIVE_MODE, "graph mode does not run the numpy bodies"
    patch = pytest.MonkeyPatch()

    def switch(*arguments, **options) -> Machine:
        patch.undo()
        return install(patch, Machine(*arguments, **options))

    yield switch
    patch.undo()
    ms.set_context(pynative_synchronize=False)
