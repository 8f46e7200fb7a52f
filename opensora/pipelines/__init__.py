"""The Python API: `from opensora.pipelines import OpenSoraPipeline`."""

from __future__ import annotations

import importlib

_MODULES = {"OpenSoraPipeline": "opensora.pipelines.t2v", "OpenSoraInpaintPipeline": "opensora.pipelines.inpaint"}

__all__ = list(_MODULES)


def __getattr__(name: str):
    if name not in _MODULES:  # imported on demand, because MindSpore takes seconds to import
        raise AttributeError(f"module 'opensora.pipelines' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
