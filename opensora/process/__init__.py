"""Processes of a run: supervision under msrun, signals, and reports about failed ranks. MindSpore is not imported."""
