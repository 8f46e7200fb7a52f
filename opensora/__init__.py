"""Open-Sora-Plan v1.3 on MindSpore: text-to-video and image-to-video diffusion for Ascend NPUs and CPUs."""

import os

# Threads that wait for work sleep; else they keep MindSpore's other threads, and other processes of msrun, from the
# cores. OpenMP reads this when it is loaded, which MindSpore does.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
