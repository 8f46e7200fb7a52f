"""Prints how far every golden case is from its reference: python tests/golden/table.py [prefix]"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1] / "helpers")]  # runs from a fresh clone

from golden_cases import case_names  # noqa: E402
from golden_iddpm import MEASURES  # noqa: E402
from golden_models import (  # noqa: E402
    CAUSAL_VAE_CASES,
    DISCRIMINATOR_CASES,
    HPCAITECH_V1_CASES,
    OPENSORA_CASES,
    PLAN_V1_CASES,
    causal_vae_rows,
    clip_text_rows,
    discriminator_rows,
    dit_rows,
    hpcaitech_v1_rows,
    mt5_rows,
    plan_v1_rows,
    sd_vae_rows,
    stdit_rows,
    t5_rows,
    wfvae_rows,
)
from golden_pipelines import PIPELINE_CASES, pipeline_rows  # noqa: E402
from golden_schedulers import golden_rows  # noqa: E402

# What measures the cases whose names begin so, and the file that describes them.
KINDS = [
    (prefix, measure, "cases.json")
    for prefix, measure in (("wfvae_", wfvae_rows), ("dit_", dit_rows), ("inpaint_", dit_rows), ("mt5_", mt5_rows))
]
KINDS += [("causalvae_", causal_vae_rows, CAUSAL_VAE_CASES), ("causalvae_", discriminator_rows, DISCRIMINATOR_CASES)]
KINDS += [
    (prefix, measure, OPENSORA_CASES)
    for prefix, measure in (("stdit2_", stdit_rows), ("sd_vae_", sd_vae_rows), *MEASURES.items())
]
KINDS += [(prefix, plan_v1_rows, PLAN_V1_CASES) for prefix in ("latte_", "opensora_v1_2_")]

HPCAITECH_V1_PREFIXES = ("stdit1_", "dit_xl_", "latte_hpc_", "pixart_")
KINDS += [(prefix, hpcaitech_v1_rows, HPCAITECH_V1_CASES) for prefix in HPCAITECH_V1_PREFIXES]
KINDS += [("t5_", t5_rows, HPCAITECH_V1_CASES), ("clip_text_", clip_text_rows, HPCAITECH_V1_CASES)]
KINDS += [("pipeline_", pipeline_rows, PIPELINE_CASES)]


def main() -> None:
    prefix = sys.argv[1] if len(sys.argv) > 1 else ""
    rows = []
    for kind, measure, file in KINDS:
        for name in case_names(kind, file):
            if name.startswith(prefix):
                rows += [(f"{name}: {output}", difference) for output, difference in measure(name).items()]
    rows += [(name, difference) for name, difference in golden_rows() if name.startswith(prefix)]
    for name, difference in rows:
        print(f"| {name} | {difference:.1e} |")


if __name__ == "__main__":
    main()
