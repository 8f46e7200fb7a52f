"""The benchmarked models in idiomatic PyTorch, for comparison.

Weights have the published names. Only the configurations of `cases.py` are supported.
"""
