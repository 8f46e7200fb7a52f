"""Numpy bodies for the operators that only Ascend has; each raises `Violation` if a call breaks a documented rule.

They run in PyNative mode on a CPU, where arguments are real tensors. They show that the calls obey the documentation
and that the composition of operators is right, not that an NPU computes it.
"""

from __future__ import annotations

import mindspore as ms

from standins import arithmetic, attention, collectives, norms, random_numbers, rope, settings, undocumented, updates
from standins.machine import Machine

MODULES = (attention, norms, rope, arithmetic, undocumented, updates, random_numbers, collectives, settings)


def install(patch, machine: Machine) -> Machine:
    """Makes the project compute "on Ascend" until `patch`, a pytest.MonkeyPatch, is undone.

    Operators run synchronously: otherwise a Python body in a nested backward pass and MindSpore's threads may wait for
    each other forever.
    """
    ms.set_context(pynative_synchronize=True)
    for module in (settings, *(module for module in MODULES if module is not settings)):
        module.install(patch, machine)
    return machine
