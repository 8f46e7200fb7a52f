"""Generates the demo's training data: clips and images of colored shapes with captions, and held-out clips:

python tools/demo/make_data.py --output_dir DIR

DIR/train/clips/*.mp4, captions.json            training, videos
DIR/train/pictures/*.png, pictures.json         training, images
DIR/train/details/*.mp4                         a quarter of other clips, around their objects, for the autoencoder
DIR/held_out/clips/*.mp4, captions.json         combinations excluded from training
DIR/{train,train_pictures,held_out}.txt         data files; embeddings go to DIR/embeddings/<the same name>

Clips are compressed without loss: the loss of yuv420p is as large as that of the autoencoder.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Optional

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

TRAIN, IMAGES, HELD_OUT, DETAILS = range(4)  # component of the seed of each split


def write_clip(path: Path, scene: Scene, rng: np.random.Generator, world: World) -> dict:
    """Writes a clip unless it exists; returns its annotation entry."""
    from opensora.demo.drawing import draw_clip

    write_frames(path, draw_clip(scene, rng, world))
    return {
        "path": path.name,
        "cap": scene.caption(background_first=rng.random() < 0.25),
        "resolution": {"height": world.side, "width": world.side},
        "num_frames": world.frames,
        "fps": FPS,
        "cut": [0, world.frames],
    }


def write_detail(path: Path, scene: Scene, rng: np.random.Generator, world: World) -> None:
    """Writes a part of a clip, half as wide and high, unless it exists.

    Most of a frame is background. An autoencoder that is trained on these parts sees four times as many objects in the
    same time.
    """
    from opensora.demo.drawing import detail_window, draw_clip

    clip = draw_clip(scene, rng, world)
    write_frames(path, clip[detail_window(scene, clip, rng, world)])


def write_frames(path: Path, frames: np.ndarray) -> None:
    if not path.exists():
        from opensora.datasets.media import write_video

        with write_video(path, FPS, lossless=True) as write:
            write(frames)


def write_image(path: Path, scene: Scene, rng: np.random.Generator, world: World) -> dict:
    from opensora.demo.drawing import draw_image

    image = draw_image(scene, rng, world)
    if not path.exists():
        from opensora.datasets.media import save_image

        save_image(path, image)
    resolution = {"height": world.side, "width": world.side}
    return {"path": path.name, "cap": scene.still.caption(), "resolution": resolution}


WRITERS = {TRAIN: write_clip, IMAGES: write_image, HELD_OUT: write_clip, DETAILS: write_detail}


def write_files(folder: Path, scenes: list[Scene], split: int, world: World) -> list:
    """Writes a file for each scene; returns their annotation entries."""
    folder.mkdir(parents=True, exist_ok=True)
    suffix = ".png" if split == IMAGES else ".mp4"

    def write_number(number: int) -> Optional[dict]:
        path, rng = folder / f"{number:05d}{suffix}", np.random.default_rng([split, number])
        return WRITERS[split](path, scenes[number], rng, world)

    with ThreadPoolExecutor() as pool:
        return list(tqdm(pool.map(write_number, range(len(scenes))), folder.name, len(scenes)))


def write_lists(folder: Path, name: str, entries: list, annotation: Path) -> None:
    """Writes the annotation and the data file of a folder."""
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
            write_lists(root / folder, name, write_files(root / folder, drawn, split, world), root / annotation)
        write_files(root / "train/details", mixed_scenes(args.details, False, rng, world), DETAILS, world)


if __name__ == "__main__":
    run_main(main)
