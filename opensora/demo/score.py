"""Measures how often the demo model's videos match their prompts, with the classifier of `reading`:

    python -m opensora.demo.score --count 100 --guidance_scale 1 4

Half of the prompts have combinations of color, shape and background that are excluded from training. If the model was
trained on two objects, there are as many prompts with two. With --new_color there are further ones, in a color that was
learned by fine-tuning.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import nullcontext
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING, Optional

import numpy as np
from tqdm import tqdm

from opensora.config.command_line import parse_flags, run_main
from opensora.config.commands import ScoreOptions
from opensora.config.device import DeviceOptions
from opensora.demo.scenes import (
    COLORS,
    DIRECTIONS,
    NEW_COLORS,
    STRIDE,
    Object,
    Scene,
    World,
    new_scenes,
    sample_scenes,
    world_of_side,
)
from opensora.utils.files import atomic_write
from opensora.utils.folder_lock import exclusive_folder

if TYPE_CHECKING:
    from mindspore import Tensor

    from opensora.device import Device
    from opensora.pipelines import OpenSoraPipeline

BATCH_SIZE = 20
MAX_TOKENS = 24  # per prompt, as in training
ASPECTS = ("color", "background", "texture", "shape", "direction", "motion", "everything")


def judge(scene: Scene, video: np.ndarray, colors: Collection[str] = tuple(COLORS)) -> dict[str, bool]:
    """Which aspects of the scene a video, uint8 (T, H, W, 3), matches. `direction` is only for scenes with one.

    An aspect of objects is that of all of them, and none matches if their number differs.
    """
    from opensora.demo.reading import read_scene

    found = read_scene(video, colors)
    matches = {
        name: found is not None and getattr(found, name) == getattr(scene, name) for name in ("background", "texture")
    }
    orders: list[Sequence[Object]] = [()]
    if found is not None and len(found.objects) == len(scene.objects):
        orders = list(permutations(found.objects))
    matches.update(_most([_matching(scene.objects, order) for order in orders]))
    return {**matches, "everything": all(matches.values())}


def _most(candidates: Sequence[dict[str, bool]]) -> dict[str, bool]:
    """The first with the most matches."""
    return max(candidates, key=lambda matches: sum(matches.values()))


def _matching(asked: Sequence[Object], found: Sequence[Object]) -> dict[str, bool]:
    """Which aspects of the objects are those of the found ones, in their order; none if nothing was found."""
    pairs = list(zip(asked, found))
    matches = {
        name: bool(pairs) and all(getattr(item, name) == getattr(other, name) for item, other in pairs)
        for name in ("color", "shape", "motion")
    }
    if any(item.motion in DIRECTIONS for item in asked):
        directed = [(item, other) for item, other in pairs if item.motion in DIRECTIONS]
        matches["direction"] = bool(directed) and all(item.motion == other.motion for item, other in directed)
    return matches


def accuracy(judgements: Sequence[dict[str, bool]]) -> dict[str, float]:
    """The fraction of matches for each aspect, over the judgements that have it."""
    found = {name: [judgement[name] for judgement in judgements if name in judgement] for name in ASPECTS}
    return {name: float(np.mean(values)) for name, values in found.items() if values}


def prompts(count: int, seed: int, world: World, objects: int = 1) -> list[Scene]:
    """`count` scenes; every second one has a held-out combination."""
    rng = np.random.default_rng(seed)
    seen, held_out = (
        sample_scenes(size, is_held_out, rng, world, objects)
        for size, is_held_out in ((count - count // 2, False), (count // 2, True))
    )
    return [scene for pair in zip(seen, held_out) for scene in pair] + seen[len(held_out) :]


def make_videos(
    pipeline: OpenSoraPipeline, scenes: Sequence[Scene], guidance_scale: float, steps: int, seed: int
) -> Iterator[np.ndarray]:
    """Yields uint8 (T, H, W, 3) for each scene; the noise does not depend on the batching."""
    from mindspore import Tensor

    from opensora.pipelines.denoise import denoise

    transformer = pipeline.transformer.get()
    config = transformer.config
    shape = (config.out_channels, config.sample_size_t, config.sample_size_h, config.sample_size_w)
    for first in range(0, len(scenes), BATCH_SIZE):
        captions = [scene.caption() for scene in scenes[first : first + BATCH_SIZE]]
        negative = [pipeline.negative_prompt] * len(captions) if guidance_scale > 1 else []
        generators = [np.random.default_rng([seed, first + i]) for i in range(len(captions))]

        def sample_noise(_: int) -> Tensor:
            return Tensor(np.stack([generator.standard_normal(shape, np.float32) for generator in generators]))

        latents = denoise(
            transformer,
            pipeline.scheduler,
            pipeline.embed(negative + captions, MAX_TOKENS),
            sample_noise(0),
            steps,
            guidance_scale,
            sample_noise,
            progress=False,
        ).latents
        yield from np.concatenate(list(pipeline.decode(latents)), 1)


def score(
    pipeline: OpenSoraPipeline,
    scenes: Sequence[Scene],
    guidance_scale: float,
    steps: int,
    seed: int,
    sheet: Optional[Path],
) -> dict[str, dict[str, float]]:
    """Accuracy on prompts with combinations seen in training, on held-out ones and on those with a new color."""
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
    colors = [*COLORS, *sorted({item.color for scene in scenes for item in scene.objects} & NEW_COLORS.keys())]
    judgements: dict[str, list[dict[str, bool]]] = {}
    for scene, video in zip(scenes, videos):
        judgements.setdefault(_kind(scene), []).append(judge(scene, video, colors))
    return {kind: accuracy(of_kind) for kind, of_kind in judgements.items()}


def _kind(scene: Scene) -> str:
    """The row of the table."""
    if any(item.color in NEW_COLORS for item in scene.objects):
        return "new color"
    return f"{'two, ' if len(scene.objects) > 1 else ''}{'held out' if scene.is_held_out else 'seen'}"


def main() -> None:
    args = parse_flags("Measures the accuracy of the demo model.", (ScoreOptions, DeviceOptions))
    from opensora import device

    dev = device.setup(args)
    folder = Path(args.output_dir) if args.output_dir else None
    with exclusive_folder(folder, dev.is_main) if folder else nullcontext():
        score_model(args, dev, folder)


def score_model(args: argparse.Namespace, dev: Device, folder: Optional[Path]) -> None:
    """Prints the table, and writes scores and contact sheets to the folder."""
    from opensora.pipelines import OpenSoraPipeline

    pipeline = OpenSoraPipeline.from_pretrained(
        args.model_path,
        args.ae_path,
        args.text_encoder_name_1,
        dtype=dev.dtype,
        prompt_template="{}",
        negative_prompt="",
        vae_dtype=dev.vae_dtype,
    )
    for spec in args.lora:
        pipeline.load_lora(*spec)
    world = world_of_side(STRIDE * pipeline.transformer.get().config.sample_size_h)
    scenes = prompts(args.count, args.seed, world)
    if world.pairs:
        scenes += prompts(args.count, args.seed, world, objects=2)
    if args.new_color:
        scenes += new_scenes(args.new_color, args.new_count, np.random.default_rng(args.seed), world)
    results = {}
    for scale in args.guidance_scale:
        sheet = folder / f"guidance_{scale:g}.png" if folder else None
        results[f"{scale:g}"] = score(pipeline, scenes, scale, args.num_sampling_steps, args.seed, sheet)
    print(f"| guidance | combinations | {' | '.join(ASPECTS)} |\n|---|---|{'---:|' * len(ASPECTS)}")
    for scale, splits in results.items():
        for name, row in splits.items():
            cells = [f"{row[aspect]:.0%}" if aspect in row else "" for aspect in ASPECTS]
            print(f"| {scale} | {name} | {' | '.join(cells)} |")
    if folder:
        with atomic_write(folder / "scores.json") as temporary:
            temporary.write_text(json.dumps(results, indent=2), encoding="utf-8")


if __name__ == "__main__":
    run_main(main)
