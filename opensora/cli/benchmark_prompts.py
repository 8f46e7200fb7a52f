"""opensora benchmark-prompts: samples a list of prompts with VBench's file names, then evaluates the videos."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from opensora.eval.benchmark_options import BenchmarkOptions, parse_options
from opensora.utils.files import atomic_write

# Dimensions of VBench that need networks which this project does not have.
ONLY_VBENCH = (
    "motion_smoothness, dynamic_degree, imaging_quality, object_class, multiple_objects, human_action, color, "
    "spatial_relationship, scene, appearance_style, temporal_style, overall_consistency"
)


def main(argv: Optional[Sequence[str]] = None) -> None:
    options, prompts, sampling, args = parse_options(argv)
    from opensora import device  # MindSpore is imported after the flags are checked
    from opensora.sample.job import run
    from opensora.sample.outputs import plan_samples

    dev = device.setup(args)
    run(sampling, dev)
    if dev.is_main:
        samples = plan_samples(sampling, [(prompt, ()) for prompt in prompts])
        names = {f"{sample.prompt}-{sample.number}{sample.path.suffix}": sample for sample in samples}
        videos = Path(options.save_img_path) / "videos"
        link_all({videos / name: sample.path for name, sample in names.items()})
        report(options, videos, {name: sample.prompt for name, sample in names.items()})


def link_all(links: dict[Path, Path]) -> None:
    """Gives files further names; copies them where the file system has no hard links."""
    for link, path in links.items():
        link.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(link) as temporary:
            temporary.unlink()
            try:
                os.link(path, temporary)
            except OSError:
                shutil.copyfile(path, temporary)


def report(options: BenchmarkOptions, videos: Path, prompts: dict[str, str]) -> None:
    """Evaluates the videos, and says what is left to VBench."""
    from opensora.eval.report import print_folders, write_report
    from opensora.eval.run import evaluate

    folder = Path(options.save_img_path)
    with atomic_write(folder / "prompts.json") as temporary:
        temporary.write_text(json.dumps(prompts, indent=1, ensure_ascii=False), encoding="utf-8")
    evaluation = options.evaluation(videos, folder / "report", folder / "prompts.json")
    results = evaluate(evaluation)
    print_folders(results)
    write_report(folder / "report", evaluation, results)
    print(f"videos with VBench's names in {videos}, report in {folder / 'report'}")
    print(f"only VBench itself measures: {ONLY_VBENCH}")
