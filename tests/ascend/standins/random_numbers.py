"""Random numbers: on Ascend a seed has no effect, so a run could be neither repeated nor resumed."""

from __future__ import annotations

from typing import Callable

from mindspore import nn, ops

from standins.machine import Machine
from standins.rules import Rule, Violation, rule

SENTENCE = "Ascend backend does not support the reproducibility of random numbers"  # in the docstrings


def unseeded() -> list[str]:
    """The functions of `ops` whose docstring says so."""
    functions = [name for name in dir(ops) if name.islower()]
    return [name for name in functions if SENTENCE in (getattr(getattr(ops, name), "__doc__", None) or "")]


DRAWS = {
    name: rule(f"ops.{name}", "is not called: its seed has no effect", f"docstring of ops.{name}, warning")
    for name in unseeded()
}
DROPOUT = rule("nn.Dropout", "p is 0 in training: its seed has no effect", "docstring of ops.dropout, warning")


def install(patch, machine: Machine) -> None:
    for name, demand in DRAWS.items():
        patch.setattr(ops, name, _forbidden(demand))
    stock = nn.Dropout.construct

    def construct(self: nn.Dropout, x):
        DROPOUT.require(not self.training or self.p == 0 or self.keep_prob == 1, self.p)
        return stock(self, x)

    patch.setattr(nn.Dropout, "construct", construct)


def _forbidden(demand: Rule) -> Callable:
    def call(*arguments, **options):
        raise Violation(f"{demand.operator} {demand.demand} ({demand.source})")

    return call
