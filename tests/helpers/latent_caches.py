"""Makes latent caches and trains from them; run as a program, it encodes with small shards:

python tests/helpers/latent_caches.py FLAGS
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # msrun starts it as a script

from opensora.process.supervision import supervise  # noqa: E402

if __name__ == "__main__":
    supervise()  # under msrun, before MindSpore is imported

from made_clips import make_clips  # noqa: E402
from tiny_models import make_older_release  # noqa: E402
from training_runs import MASK_CONFIG, inpaint_command, t2v_command  # noqa: E402

from opensora.cli import encode  # noqa: E402
from opensora.config.command_line import run_main  # noqa: E402
from opensora.datasets.latents import shards  # noqa: E402

SMALL_SHARD = 4096  # bytes
WITHOUT_MODELS = ("--ae_path", "--text_encoder_name_1")


def make_training_folder(folder: Path, videos: int = 16) -> Path:
    """A release of tiny models, and clips that have exactly the frames of a sample.

    The first and the last video have quality sentences, and the second sample has a list of captions.
    """
    make_older_release(folder / "release")
    data = make_clips(folder / "data", videos=videos, images=16, frames=5, size=(32, 32))
    annotation = data.parent / "annotation.json"
    entries = json.loads(annotation.read_text())
    entries[1]["cap"] = ["one", "another <b>caption</b>"]
    for entry in entries[1 : max(1, videos - 1)]:
        del entry["aesthetic"]
    annotation.write_text(json.dumps(entries))
    return folder


def encode_flags(folder: Path, output: str, *more) -> list[str]:
    """The flags of opensora encode for the data and the models of `t2v_command`."""
    return [
        *f"--data {folder}/data/merge_data.txt --ae_path {folder}/release/vae --text_encoder_name_1 "
        f"{folder}/release/text --cache_dir {folder}/cache --output {folder}/{output} --num_frames 5 --max_hxw 1024 "
        "--model_max_length 64 --dataloader_num_workers 0 --device CPU".split(),
        *map(str, more),
    ]


def encode_here(folder: Path, output: str, *more) -> Path:
    """Makes a cache in this process; returns its folder."""
    encode.main(encode_flags(folder, output, *more))
    return folder / output


def training_flags(folder: Path, output: str, *more, inpaint: bool = False, generation: str = "v1.3") -> list[str]:
    """The flags of a training from pixels, or from the cache that `more` names."""
    if inpaint:
        command = inpaint_command(folder, output, "--mask_config", MASK_CONFIG, *more)
    else:
        command = t2v_command(folder, output, *more, generation=generation)
    return [*command[1:], *"--dataloader_num_workers 0 --train_batch_size 4".split()]


def without_models(flags: list[str]) -> list[str]:
    """The flags of a training without those of the autoencoder and the text encoder."""
    dropped = {place + i for place, flag in enumerate(flags) if flag in WITHOUT_MODELS for i in (0, 1)}
    return [flag for place, flag in enumerate(flags) if place not in dropped]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


if __name__ == "__main__":
    shards.SHARD_BYTES = SMALL_SHARD
    run_main(encode.main)
