"""The benchmarked models in PyTorch, as one writes them there: what the project's own are compared with.

Names of weights are the published ones. Only what `cases.py` configures is here.
"""
