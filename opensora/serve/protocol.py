"""Messages between the service and its workers, one JSON object a line, and the files of a job besides its result."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

PREVIEW, STATE = "preview.webp", "state.npz"  # written while the job runs
LONGEST_LINE = 1 << 20  # bytes


def encode(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """Raises ValueError for a line that is no JSON object."""
    message = json.loads(line)
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise ValueError(f"no message: {line[:100]!r}")
    return message
