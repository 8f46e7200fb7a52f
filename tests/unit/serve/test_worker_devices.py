"""Which NPUs the workers of a service see."""

from __future__ import annotations

import pytest

from opensora.errors import UserError
from opensora.serve.workers import VISIBLE, check_devices, own_devices


@pytest.mark.parametrize(
    "number, ranks, visible, expected",
    [(0, 1, None, "0"), (3, 1, None, "3"), (1, 2, None, "2,3"), (1, 2, "4,5,6,7", "6,7"), (0, 1, "5,6", "5")],
)
def test_workers_have_different_devices(number, ranks, visible, expected):
    assert own_devices(number, ranks, visible) == expected


def test_too_few_devices_are_refused(monkeypatch):
    monkeypatch.setenv(VISIBLE, "4,5,6")
    check_devices(3, 1)
    check_devices(1, 8)  # a single worker sees what the service sees
    with pytest.raises(UserError, match="ASCEND_RT_VISIBLE_DEVICES=4,5,6: 2 workers of 2 devices need 4; lower"):
        check_devices(2, 2)
