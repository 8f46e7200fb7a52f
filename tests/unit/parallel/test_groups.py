"""Groups of processes, and the distribution of items over them."""

from __future__ import annotations

import pytest

from opensora.device import Device
from opensora.parallel.groups import sequence_group, shard_list


def test_items_are_sharded_with_equal_counts():
    groups = [sequence_group(Device("CPU", 1, "fp32", rank, 4), 2, 4) for rank in (0, 2)]
    assert shard_list("abc", groups[0], equal_counts=True) == [("a", True), ("c", True)]
    assert shard_list("abc", groups[1], equal_counts=True) == [("b", True), ("c", False)]
    assert shard_list("abc", groups[1], equal_counts=False) == [("b", True)]


def test_invalid_group_sizes_are_rejected():
    eight = Device("CPU", 1, "fp32", rank=5, world_size=8)
    assert sequence_group(eight, 4, 24).ranks == (4, 5, 6, 7) and sequence_group(eight, 4, 24).index == 1
    assert sequence_group(eight, 1, 24).ranks == (5,)
    with pytest.raises(ValueError, match="8 processes.*1, 2, 4, 8"):
        sequence_group(eight, 3, 24)
    with pytest.raises(ValueError, match="6 attention heads.*1, 2, 3, 6"):
        sequence_group(eight, 4, 6)
