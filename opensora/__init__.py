"""Open-Sora-Plan v1.3 on MindSpore: text-to-video and image-to-video diffusion for Ascend NPUs and CPUs."""

__version__ = "0.1.0"
