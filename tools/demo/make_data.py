"""Generates the demo's training data: clips and images of colored shapes with captions, and held-out clips:

python tools/demo/make_data.py --output_dir DIR

DIR/train/clips/*.mp4, captions.json            training, videos
DIR/train/pictures/*.png, pictures.json         training, images
DIR/held_out/clips/*.mp4, captions.json         combinations excluded from training
DIR/{train,train_pictures,held_out}.txt         data files; embeddings go to DIR/embeddings/<the same name>
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

try:
    from opensora.config.command_line import parse_flags, run_main
    from opensora.config.commands import DemoDataOptions
    from opensora.demo.scenes import FPS, WORLDS, Scene, World, mixed_scenes
    from opensora.utils.files import atomic_write
    from opensora.utils.folder_lock import exclusive_folder
except ModuleNotFoundError as error:
    sys.exit(f"error: {error}; in the folder of the clone, run: pip install -e . (or: bash scripts/setup.sh)")

TRAIN, IMAGES, HELD_OUT = range(3)  # component of the seed of each split


def write_clip(path: Path, scene: Scene, rng: np.random.Generator, world: World) -> dict:
    """Writes a clip unless it exists; returns its annotation entry."""
    from opensora.demo.drawing import draw_clip

    clip = draw_clip(scene, rng, world)
    if not path.exists():
        from opensora.datasets.media import write_video

        with write_video(path, FPS, lossless=True) as write:
            write(clip)
    return {
        "path": path.name,
        "cap": scene.caption(background_first=rng.random() < 0.25),
        "resolution": {"height": world.side, "width": world.side},
        "num_frames": world.frames,
        "fps": FPS,
        "cut": [0, world.frames],
    }


def write_image(path: Path, scene: Scene, rng: np.random.Generator, world: World) -> dict:
    from opensora.demo.drawing import draw_image

    image = draw_image(scene, rng, world)
    if not path.exists():
        from opensora.datasets.media import save_image

        save_image(path, image)
    resolution = {"height": world.side, "width": world.side}
    return {"path": path.name, "cap": scene.still.caption(), "resolution": resolution}


def write_split(folder: Path, name: str, scenes: list[Scene], split: int, annotation: Path, world: World) -> None:
    """Writes the samples of one split, then its annotation and data file."""
    folder.mkdir(parents=True, exist_ok=True)
    write, suffix = (write_image, ".png") if split == IMAGES else (write_clip, ".mp4")

    def write_number(number: int) -> dict:
        return write(folder / f"{number:05d}{suffix}", scenes[number], np.random.default_rng([split, number]), world)

    with ThreadPoolExecutor() as pool:
        entries = list(tqdm(pool.map(write_number, range(len(scenes))), name, len(scenes)))
    root = folder.parent.parent
    with atomic_write(annotation) as temporary:
        temporary.write_text(json.dumps(entries), encoding="utf-8")
    with atomic_write(root / f"{name}.txt") as temporary:
        temporary.write_text(f"{folder},{root / 'embeddings' / name},{annotation}\n", encoding="utf-8")


def main() -> None:
    args = parse_flags("Generates clips and images of colored shapes, with captions.", (DemoDataOptions,))
    root = Path(args.output_dir)
    rng, world = np.random.default_rng(0), WORLDS[args.world]
    with exclusive_folder(root):
        for split, folder, name, count, annotation in (
            (IMAGES, "train/pictures", "train_pictures", args.pictures, "train/pictures.json"),
            (TRAIN, "train/clips", "train", args.clips, "train/captions.json"),
            (HELD_OUT, "held_out/clips", "held_out", args.held_out, "held_out/captions.json"),
        ):
            drawn = mixed_scenes(count, split == HELD_OUT, rng, world)
            write_split(root / folder, name, drawn, split, root / annotation, world)


if __name__ == "__main__":
    run_main(main)
