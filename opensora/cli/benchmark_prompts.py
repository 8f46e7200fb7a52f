"""opensora benchmark-prompts: samples a list of prompts with VBench's file names, then evaluates the videos."""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from opensora.config.command_line import parse_flags
from opensora.config.device import DeviceOptions
from opensora.config.evaluation import EvaluateOptions
from opensora.config.options import from_mapping, option, option_of
from opensora.errors import UserError
from opensora.sample.generation import folder_and_generation, generation_settings
from opensora.sample.options import SampleOptions, check_weights
from opensora.sample.prompt_files import read_prompts
from opensora.utils.files import atomic_write
from opensora.utils.json_text import read_json

if TYPE_CHECKING:
    from opensora.sample.outputs import Sample

VBENCH_PROMPT = "prompt_en"  # key of the entries of VBench_full_info.json
SAMPLES_OF_VBENCH = 5  # of each prompt
# Dimensions of VBench that need networks which this project does not have.
ONLY_VBENCH = (
    "motion_smoothness, dynamic_degree, imaging_quality, object_class, multiple_objects, human_action, color, "
    "spatial_relationship, scene, appearance_style, temporal_style, overall_consistency"
)


def _of_evaluation(name: str) -> Any:
    return option_of(EvaluateOptions, name, group="evaluation")


@dataclass(frozen=True)
class BenchmarkOptions:
    """What differs from sample.py, and the networks of the metrics."""

    text_prompt: str = option(help="VBench_full_info.json, or a file of prompts as for sample.py", group="output")
    save_img_path: str = option(
        help="folder for the samples, the videos with VBench's names, and the report", group="output"
    )
    num_samples_per_prompt: int = option(
        SAMPLES_OF_VBENCH, "samples of each prompt, which differ in their noise; VBench has 5", group="output"
    )
    num_prompts: int = option(0, "use only the first n prompts; 0: all", group="output")
    real_video_dir: Optional[str] = _of_evaluation("real_video_dir")
    i3d_path: Optional[str] = _of_evaluation("i3d_path")
    fvd_protocol: str = _of_evaluation("fvd_protocol")
    clip_path: Optional[str] = _of_evaluation("clip_path")
    clip_large_path: Optional[str] = _of_evaluation("clip_large_path")
    aesthetic_path: Optional[str] = _of_evaluation("aesthetic_path")
    dino_path: Optional[str] = _of_evaluation("dino_path")

    def evaluation(self, videos: Path, report: Path, prompts: Path) -> EvaluateOptions:
        """The options of the evaluation of a folder of videos."""
        networks = ("real_video_dir", "i3d_path", "fvd_protocol", "clip_path", "clip_large_path", "aesthetic_path")
        given = {name: getattr(self, name) for name in (*networks, "dino_path")}
        return EvaluateOptions([str(videos)], prompts=str(prompts), output_dir=str(report), **given)


def parse_options(
    argv: Optional[Sequence[str]] = None,
) -> tuple[BenchmarkOptions, list[str], SampleOptions, argparse.Namespace]:
    """The checked options, the prompts, the options of sampling, and the parsed flags for `device.setup`.

    Raises:
        UserError, OSError: every mistake that is visible before weights are loaded.
    """
    args = parse_flags(
        "Samples every prompt of a list several times, names the videos as VBench expects, and evaluates them.",
        (BenchmarkOptions, SampleOptions, DeviceOptions),
        argv,
        yaml_file=True,
        defaults=generation_settings,
    )
    options = from_mapping(BenchmarkOptions, vars(args))
    prompts = benchmark_prompts(options.text_prompt)[: options.num_prompts or None]
    folder = Path(options.save_img_path)
    listed = folder / "prompts.txt"
    with atomic_write(listed) as temporary:
        temporary.write_text("\n".join(prompts) + "\n", encoding="utf-8")
    args.model_path, args.version = folder_and_generation(args.model_path, args.version)
    sampling = from_mapping(SampleOptions, vars(args), text_prompt=[str(listed)], save_img_path=str(folder / "samples"))
    if sampling.is_image or sampling.is_inpaint:
        raise UserError("benchmark-prompts makes videos from text: leave out --model_type and --force_images")
    return options, prompts, check_weights(sampling), args


def benchmark_prompts(path: str) -> list[str]:
    """The prompts of a file, each once: of VBench's list, or of any file that sample.py takes.

    Raises:
        FileNotFoundError: no such file.
        UserError: a file without prompts, or a prompt that cannot be the name of a file.
    """
    content = read_json(path) if Path(path).suffix == ".json" else None
    entries = content if isinstance(content, list) else []
    if entries and all(isinstance(entry, dict) and VBENCH_PROMPT in entry for entry in entries):
        prompts = [str(entry[VBENCH_PROMPT]) for entry in entries]
    else:
        prompts = read_prompts([path])
    prompts = list(dict.fromkeys(" ".join(prompt.split()) for prompt in prompts))
    for prompt in prompts:
        if "/" in prompt or len(prompt.encode()) > 240:
            raise UserError(
                f"{path}: the prompt {prompt[:60]!r} cannot name a file, which VBench needs: leave out slashes, "
                "and write 240 bytes at most"
            )
    return prompts


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
        report(options, videos, names)


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


def report(options: BenchmarkOptions, videos: Path, samples: Mapping[str, Sample]) -> None:
    """Evaluates the videos, and says what is left to VBench.

    Args:
        samples: by the names of the videos.
    """
    from opensora.eval.report import print_folders, write_report
    from opensora.eval.run import evaluate

    folder, prompts = Path(options.save_img_path), {name: sample.prompt for name, sample in samples.items()}
    with atomic_write(folder / "prompts.json") as temporary:
        temporary.write_text(json.dumps(prompts, indent=1, ensure_ascii=False), encoding="utf-8")
    evaluation = options.evaluation(videos, folder / "report", folder / "prompts.json")
    results = evaluate(evaluation)
    print_folders(results)
    write_report(folder / "report", evaluation, results, {name: sample.path for name, sample in samples.items()})
    print(f"videos with VBench's names in {videos}, report in {folder / 'report'}")
    print(f"only VBench itself measures: {ONLY_VBENCH}")
