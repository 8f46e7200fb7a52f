"""Fused kernels for the CPU, in C++: `src`, built by `build`, wrapped as operators with gradients in `kernels`.

Optional: where they cannot be built, and on other devices, `opensora.ops` uses stock operators.
"""
