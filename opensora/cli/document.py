"""Writes the tables of flags and fields into docs/commands.md, docs/config.md and docs/studio.md, and the estimates of
docs/ascend.md and docs/memory.md:

    python -m opensora.cli.document

A table replaces the text between `<!-- table NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from opensora.config import commands
from opensora.config.device import DeviceOptions
from opensora.config.evaluation import EvaluateOptions
from opensora.config.fields import INFERENCE, TRAINING
from opensora.config.mmengine import PLACES
from opensora.config.options import check_choice, field_table, flag_table, override_table
from opensora.cost_model import Run, size_table
from opensora.cost_model.memory_table import memory_table
from opensora.datasets.prepare.options import PrepareOptions, SelectionFlags
from opensora.sample.options import SampleOptions
from opensora.sample.search_options import SearchOptions
from opensora.serve.options import ServeOptions
from opensora.train import encode_options, t2v_options, vae_options
from opensora.train.inpaint_options import INPAINT_OPTIONS
from opensora.utils.files import atomic_write

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "docs" / name for name in ("ascend.md", "commands.md", "config.md", "memory.md", "studio.md")]
TABLE = re.compile(r"<!-- table (\S+) -->\n.*?<!-- end -->", re.S)


_FLAGS: Mapping[str, tuple[type, ...]] = {
    "device": (DeviceOptions,),
    "sample": (SampleOptions,),
    "serve": (ServeOptions,),
    "train-t2v": t2v_options.OPTIONS[:-1],
    "train-vae": vae_options.OPTIONS[:-1],
    "prepare": (PrepareOptions, SelectionFlags),
    "embed": (commands.EmbedOptions,),
    "refine": (commands.RefineOptions,),
    "reconstruct": (commands.ReconstructOptions,),
    "reconstruct-video": (commands.RecVideoOptions,),
    "reconstruct-image": (commands.RecImageOptions,),
    "reconstruct-folder": (commands.RecFolderOptions,),
    "evaluate": (EvaluateOptions,),
    "plan": (commands.CostFlags, Run),
    "convert": (commands.ConvertAnyOptions,),
    "convert-wfvae": (commands.ConvertWFVAEOptions,),
    "merge": (commands.MergeOptions,),
    "cast": (commands.CastOptions,),
    "fuse-lora": (commands.FuseLoRAOptions,),
    "extract-lora": (commands.ExtractLoRAOptions,),
    "latent-scale": (commands.LatentScaleOptions,),
    "score": (commands.ScoreOptions,),
    "doctor": (commands.DoctorOptions,),
    "buckets": (commands.BucketReportOptions,),
}


def tables() -> dict[str, str]:
    """Every table by its name."""
    inference, training = ([cls for cls in classes if "Flags" not in cls.__name__] for classes in (INFERENCE, TRAINING))
    return {
        **{name: flag_table(*classes) for name, classes in _FLAGS.items()},
        "train-inpaint": flag_table(*INPAINT_OPTIONS, without=(t2v_options.T2VDataOptions, *t2v_options.OPTIONS)),
        "encode": flag_table(*encode_options.OPTIONS, without=(encode_options.InpaintDataOptions, DeviceOptions)),
        "search-steps": flag_table(SearchOptions, without=(SampleOptions,)),
        "inference-fields": field_table(*inference),
        "training-fields": field_table(*training),
        "inference-overrides": override_table(PLACES, *INFERENCE),
        "training-overrides": override_table(PLACES, *TRAINING),
        "sizes": size_table(),
        "memory": memory_table(),
    }


def documented(page: str) -> str:
    """The page with its tables up to date. Raises UserError for a table that there is not."""
    known = tables()

    def table(match: re.Match) -> str:
        check_choice("table", match[1], known)
        return f"<!-- table {match[1]} -->\n{known[match[1]]}\n<!-- end -->".replace(f"{ROOT}/", "")

    return TABLE.sub(table, page)


def main() -> None:
    for path in PAGES:
        text = documented(path.read_text(encoding="utf-8"))
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
