"""The Python API: `from opensora.pipelines import OpenSoraPipeline`."""

from __future__ import annotations

import importlib

_HOMES = {"OpenSoraPipeline": "opensora.pipelines.t2v", "OpenSoraInpaintPipeline": "opensora.pipelines.inpaint"}

__all__ = list(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'opensora.pipelines' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
