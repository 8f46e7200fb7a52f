"""Prints the operators and the rules that their replacements enforce, as a Markdown table."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
if __name__ == "__main__":
    sys.path[:1] = [str(ROOT), str(ROOT / "tests/ascend")]

import standins.random_numbers  # noqa: E402
from standins.rules import RULES  # noqa: E402


def table() -> str:
    """One row for each rule; the operators that draw random numbers share one."""
    draws = list(standins.random_numbers.DRAWS.values())
    lines = ["| operator | demand | source |", "| --- | --- | --- |"]
    names = ", ".join(f"`{rule.operator}`" for rule in draws)
    for rule in RULES:
        if rule not in draws:
            lines.append(f"| `{rule.operator}` | {rule.demand} | {rule.source} |")
        elif rule == draws[0]:
            lines.append(f"| {names} | {rule.demand} | their docstrings, warning |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
