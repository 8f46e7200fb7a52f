"""Numbers and decisions that the processes of a video share in the denoising loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

import numpy as np
from mindspore import Tensor

from opensora.parallel.collectives import AllReduce, any_process
from opensora.parallel.groups import VideoGroups


class Agreement:
    """The processes that make one video take the same decisions; one process decides alone.

    Args:
        groups: None: one process.
    """

    def __init__(self, groups: Optional[VideoGroups] = None):
        self._world_size = groups.video.world_size if groups and groups.lockstep else 1
        self._reduce = AllReduce(groups.video) if groups and groups.video.size > 1 else None

    def total(self, values: Sequence[float]) -> list[float]:
        """The sums of the values of the video's processes at each position, the same numbers in all of them."""
        if self._reduce is None:
            return list(values)
        return self._reduce(Tensor(np.array(values, np.float32))).asnumpy().tolist()

    def video_calls(self, wanted: bool) -> bool:
        """Whether the video's processes call the transformer: if one of them wants to."""
        return self.total([float(wanted)])[0] > 0

    def run_calls(self, video_calls: bool) -> bool:
        """Whether this process calls the transformer, given whether its video needs it.

        Where all processes of a run must call the same collectives, those of a video that needs no call make one, and
        do not use the result, if another video needs it. So a video does not depend on what else the run makes.
        """
        return any_process(video_calls, self._world_size)
