"""The device on which the checks compute."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any, Optional

from opensora import device
from opensora.config.device import DeviceOptions
from opensora.errors import UserError


def supports(target: str, precision: str) -> bool:
    """Whether models run in a precision on a target."""
    try:
        return device.choose_precision(target, precision) == precision
    except UserError:
        return False


def set_up(target: Optional[str], **changes: Any) -> device.Device:
    """`device.setup` for the target, with the defaults of the other flags unless `changes` has them."""
    return device.setup(argparse.Namespace(**asdict(DeviceOptions(device=target, **changes))))
