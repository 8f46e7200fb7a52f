"""opensora search-steps: the timesteps with which a short run comes nearest to a long one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

from opensora.sample.search_options import parse_search


def main(argv: Optional[Sequence[str]] = None) -> None:
    search, options, args = parse_search(argv)
    from opensora import device  # MindSpore is imported after the flags are checked
    from opensora.sample.search_job import search_timesteps

    search_timesteps(search, options, device.setup(args))
