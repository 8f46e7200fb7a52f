"""Which device the primitives of `opensora.ops` compute on."""

from __future__ import annotations

import mindspore as ms


@ms.ops.constexpr
def on_ascend() -> bool:
    """Whether operators of Ascend are available; a constant in graph mode."""
    return ms.get_context("device_target") == "Ascend"
