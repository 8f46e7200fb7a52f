"""Draws clips of a color that the demo model has never seen, each with its caption in a text file beside it:

python tools/demo/make_new_clips.py --output_dir DIR

The guide to fine-tuning (docs/finetuning.md) teaches the model this color with them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

try:
    from opensora.config.command_line import parse_flags, run_main
    from opensora.config.commands import NewClipsOptions
    from opensora.config.options import from_mapping
    from opensora.demo.scenes import FPS, WORLDS, Scene, World, new_scenes
    from opensora.utils.files import atomic_write
    from opensora.utils.folder_lock import exclusive_folder
except ModuleNotFoundError as error:
    sys.exit(f"error: {error}; in the folder of the clone, run: pip install -e . (or: bash scripts/setup.sh)")


def write_clip(folder: Path, scene: Scene, rng: np.random.Generator, world: World) -> None:
    """Writes a clip and its caption, named after the scene."""
    from opensora.datasets.media import write_video
    from opensora.demo.drawing import draw_clip

    name = scene.caption().replace(" ", "_")
    with write_video(folder / f"{name}.mp4", FPS) as write:
        write(draw_clip(scene, rng, world))
    with atomic_write(folder / f"{name}.txt") as temporary:
        temporary.write_text(f"{scene.caption()}\n", encoding="utf-8")


def main() -> None:
    args = parse_flags("Draws clips of a new color, with captions.", (NewClipsOptions,))
    options = from_mapping(NewClipsOptions, vars(args))
    folder = Path(options.output_dir)
    rng, world = np.random.default_rng(options.seed), WORLDS[options.world]
    with exclusive_folder(folder):
        for scene in new_scenes(options.color, options.clips, rng, world):
            write_clip(folder, scene, rng, world)
    print(f"{options.clips} clips in {folder}")


if __name__ == "__main__":
    run_main(main)
