"""Prints how far every golden case is from its reference: python tests/golden_table.py [prefix]"""
from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]  # runs from a fresh clone

from golden_cases import case_names  # noqa: E402
from golden_models import dit_rows, mt5_rows, wfvae_rows  # noqa: E402
from test_schedulers import golden_rows  # noqa: E402


def main() -> None:
    prefix = sys.argv[1] if len(sys.argv) > 1 else ""
    rows = []
    for kind, measure in (("wfvae_", wfvae_rows), ("dit_", dit_rows), ("inpaint_", dit_rows), ("mt5_", mt5_rows)):
        for name in case_names(kind):
            if name.startswith(prefix):
                rows += [(f"{name}: {output}", difference) for output, difference in measure(name).items()]
    rows += [(name, difference) for name, difference in golden_rows() if name.startswith(prefix)]
    for name, difference in rows:
        print(f"| {name} | {difference:.1e} |")


if __name__ == "__main__":
    main()
