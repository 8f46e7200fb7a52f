"""Numpy bodies for the operators that only Ascend has; each raises `Violation` if a call breaks a documented rule.

They run in PyNative mode on a CPU, where arguments are real tensors. They show that the calls obey the documentation
and that the composition of operators is right, not that an NPU computes it.
"""

from __future__ import annotations

from standins import arithmetic, attention, collectives, norms, random_numbers, rope, settings, undocumented, updates
from standins.machine import Machine

MODULES = (attention, norms, rope, arithmetic, undocumented, updates, random_numbers, collectives, settings)


def install(patch, machine: Machine) -> Machine:
    """Makes the project compute "on Ascend" until `patch`, a pytest.MonkeyPatch, is undone."""
    for module in (settings, *(module for module in MODULES if module is not settings)):
        module.install(patch, machine)
    return machine
