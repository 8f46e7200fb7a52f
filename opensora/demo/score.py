"""How often the demo model makes what the prompt says, told from the frames:

    python -m opensora.demo.score --count 100 --guidance_scale 1 4

Half of the prompts are combinations of colour, shape and background that training never saw.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Optional

import numpy as np
from tqdm import tqdm

from opensora.config.commands import ScoreOptions
from opensora.config.device import DeviceOptions
from opensora.demo.scenes import DIRECTIONS, FRAMES, SIDE, Scene, draw_scenes
from opensora.utils.cli import parse_flags, run_main
from opensora.utils.files import atomic_write
from opensora.utils.folder_lock import exclusive_folder

if TYPE_CHECKING:
    from mindspore import Tensor

    from opensora.device import Device
    from opensora.pipelines import OpenSoraPipeline

TOGETHER = 20  # videos
TOKENS = 24  # of a prompt, as in training
ASPECTS = ("color", "background", "shape", "direction", "motion", "everything")


def judge(scene: Scene, video: np.ndarray) -> dict[str, bool]:
    """Which aspects of the scene the video, uint8 (T, H, W, 3), shows. `direction` is there for what moves away."""
    from opensora.demo.reading import read_scene

    found = read_scene(video)
    right = {
        name: found is not None and getattr(found, name) == getattr(scene, name)
        for name in ("color", "background", "shape", "motion")
    }
    if scene.motion in DIRECTIONS:
        right["direction"] = right["motion"]
    return {**right, "everything": found == scene}


def accuracy(judgements: Sequence[dict[str, bool]]) -> dict[str, float]:
    """The share that is right, of those that have the aspect."""
    found = {name: [judgement[name] for judgement in judgements if name in judgement] for name in ASPECTS}
    return {name: float(np.mean(values)) for name, values in found.items() if values}


def prompts(count: int, seed: int) -> list[Scene]:
    """Scenes, every second one of combinations held out."""
    rng = np.random.default_rng(seed)
    seen, held_out = (
        draw_scenes(size, is_held_out, rng) for size, is_held_out in ((count - count // 2, False), (count // 2, True))
    )
    return [scene for pair in zip(seen, held_out) for scene in pair] + seen[len(held_out) :]


def make_videos(
    pipeline: OpenSoraPipeline, scenes: Sequence[Scene], guidance_scale: float, steps: int, seed: int
) -> Iterator[np.ndarray]:
    """uint8 (T, H, W, 3) for each scene; what noise it gets does not depend on which are made together."""
    from mindspore import Tensor

    from opensora.pipelines.denoise import denoise

    transformer = pipeline.transformer.get()
    shape = (transformer.config.out_channels, (FRAMES - 1) // 4 + 1, SIDE // 8, SIDE // 8)
    for first in range(0, len(scenes), TOGETHER):
        captions = [scene.caption() for scene in scenes[first : first + TOGETHER]]
        negative = [pipeline.negative_prompt] * len(captions) if guidance_scale > 1 else []
        generators = [np.random.default_rng([seed, first + i]) for i in range(len(captions))]

        def noise(_: int) -> Tensor:
            return Tensor(np.stack([generator.standard_normal(shape, np.float32) for generator in generators]))

        latents = denoise(
            transformer,
            pipeline.scheduler,
            pipeline.embed(negative + captions, TOKENS),
            noise(0),
            steps,
            guidance_scale,
            noise,
            progress=False,
        )
        yield from np.concatenate(list(pipeline.decode(latents)), 1)


def score(
    pipeline: OpenSoraPipeline,
    scenes: Sequence[Scene],
    guidance_scale: float,
    steps: int,
    seed: int,
    sheet: Optional[Path],
) -> dict[str, dict[str, float]]:
    """Accuracy of the prompts whose combinations were seen in training, and of the others."""
    videos = list(
        tqdm(
            make_videos(pipeline, scenes, guidance_scale, steps, seed),
            f"guidance {guidance_scale:g}",
            len(scenes),
            unit="video",
        )
    )
    if sheet:
        from opensora.datasets.media import save_grid

        save_grid(sheet, videos[:16])
    judgements = [judge(scene, video) for scene, video in zip(scenes, videos)]
    return {
        name: accuracy([judgement for scene, judgement in zip(scenes, judgements) if scene.is_held_out == is_held_out])
        for name, is_held_out in (("seen", False), ("held out", True))
    }


def main() -> None:
    args = parse_flags("Measures the accuracy of the demo model.", (ScoreOptions, DeviceOptions))
    from opensora import device

    dev = device.setup(args)
    folder = Path(args.output_dir) if args.output_dir else None
    with exclusive_folder(folder, dev.is_main) if folder else nullcontext():
        score_model(args, dev, folder)


def score_model(args: argparse.Namespace, dev: Device, folder: Optional[Path]) -> None:
    """Prints the table, and writes the scores and contact sheets into the folder."""
    from opensora.pipelines import OpenSoraPipeline

    pipeline = OpenSoraPipeline.from_pretrained(
        args.model_path,
        args.ae_path,
        args.text_encoder_name_1,
        dtype=dev.dtype,
        prompt_template="{}",
        negative_prompt="",
    )
    scenes = prompts(args.count, args.seed)
    results = {}
    for scale in args.guidance_scale:
        sheet = folder / f"guidance_{scale:g}.png" if folder else None
        results[f"{scale:g}"] = score(pipeline, scenes, scale, args.num_sampling_steps, args.seed, sheet)
    print(f"| guidance | combinations | {' | '.join(ASPECTS)} |\n|---|---|{'---:|' * len(ASPECTS)}")
    for scale, parts in results.items():
        for name, part in parts.items():
            print(
                f"| {scale} | {name} | {' | '.join(f'{part[aspect]:.0%}' if aspect in part else '' for aspect in ASPECTS)} |"
            )
    if folder:
        with atomic_write(folder / "scores.json") as temporary:
            temporary.write_text(json.dumps(results, indent=2), encoding="utf-8")


if __name__ == "__main__":
    run_main(main)
