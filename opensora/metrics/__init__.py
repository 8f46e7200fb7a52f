"""Metrics of images and videos, pure functions of arrays: `from opensora.metrics import psnr, fvd`."""

from __future__ import annotations

import importlib

_MODULES = {
    "psnr": "psnr_ssim",
    "ssim": "psnr_ssim",
    "lpips": "perceptual",
    "fvd": "video_distance",
    "clip_score": "clip_similarity",
    "clipsim": "clip_similarity",
    "temporal_flickering": "vbench",
    "background_consistency": "vbench",
    "subject_consistency": "vbench",
    "aesthetic_quality": "vbench",
    "motion_amount": "motion",
}

__all__ = list(_MODULES)


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module 'opensora.metrics' has no attribute {name!r}")
    # Most modules import MindSpore, which takes seconds and which psnr and ssim do not need.
    return getattr(importlib.import_module(f"opensora.metrics.{_MODULES[name]}"), name)
