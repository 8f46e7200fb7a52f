"""Open-Sora-Plan v1.3 on MindSpore: text-to-video and image-to-video diffusion for Ascend NPUs and CPUs."""

import os

# OpenMP threads that wait for work sleep instead of spinning, which would keep the cores from MindSpore's other threads
# and from the other processes of msrun. OpenMP reads this variable once, when MindSpore loads it: it has to be set
# before the first import of MindSpore. A value that is already set stays.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
