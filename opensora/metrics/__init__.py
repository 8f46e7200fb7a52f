"""Image quality metrics, pure functions of frames in [0, 1]: `from opensora.metrics import psnr, ssim, lpips`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opensora.metrics.psnr_ssim import psnr, ssim

if TYPE_CHECKING:
    from opensora.metrics.perceptual import lpips

__all__ = ["psnr", "ssim", "lpips"]


def __getattr__(name: str):
    if name != "lpips":
        raise AttributeError(f"module 'opensora.metrics' has no attribute {name!r}")
    from opensora.metrics.perceptual import lpips  # imports MindSpore, which takes seconds and which psnr does not need

    return lpips
