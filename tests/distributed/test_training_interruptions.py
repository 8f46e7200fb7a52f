"""Training that gets SIGKILL, SIGTERM, SIGINT or SIGHUP at random moments loses nothing."""

import pytest
from training_interruptions import LAYOUTS, interruptions


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_random_interruptions_lose_nothing(layout, tmp_path):
    assert sum(interruptions(tmp_path, layout, wanted=4, seed=0).values()) >= 4
