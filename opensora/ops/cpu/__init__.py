"""Fused C++ kernels for CPUs, float32 only (README.md).

The sources are in `src`, `build` compiles and loads them at their first use, and the other modules wrap them as
operators with gradients. They are optional: on other devices and without a compiler `opensora.ops` uses stock ones.
"""
