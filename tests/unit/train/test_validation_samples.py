"""Videos that training samples when it validates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from golden_eval import write_clip
from made_clips import make_clips
from tiny_models import make_release
from training_program import train
from training_runs import inpaint_command, rows, t2v_command

from opensora.cli.train import inpaint
from opensora.datasets.media import VideoReader
from opensora.errors import UserError
from opensora.metrics.frechet import FeatureStatistics, frechet_distance
from opensora.metrics.video_distance import fvd_features
from opensora.models.vision.i3d import I3D
from opensora.pipelines import OpenSoraPipeline
from opensora.train.t2v_options import parse_options

FRAMES, STEPS, GUIDANCE = 13, 4, 3.0
VALIDATION = "--validate --val_data {folder}/data/merge_data.txt --max_train_steps 2 --num_frames {frames}"
SAMPLES = f"--val_samples 2 --val_num_sampling_steps {STEPS} --val_guidance_scale {GUIDANCE}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A release of tiny models, networks of metrics and clips."""
    folder = tmp_path_factory.mktemp("validation")
    make_release(folder / "release")
    I3D().save_pretrained(folder / "i3d")
    write_clip(folder / "clip")
    make_clips(folder / "data", videos=4, images=0, frames=FRAMES, size=(32, 32))
    return folder


def flags(folder: Path, output: str, *more: str) -> list[str]:
    given = VALIDATION.format(folder=folder, frames=FRAMES)
    return t2v_command(folder, output, *f"--dataloader_num_workers 0 {given}".split(), *more)[1:]


def metrics(run: Path) -> dict[str, float]:
    """Those of the last validation."""
    line = (run / "result_val.log").read_text().splitlines()[-1]
    return {name: float(value) for name, value in (part.split() for part in line.split(" | ")[1:])}


def test_samples_are_measured_and_do_not_change_the_training(folder):
    networks = f"--i3d_path {folder}/i3d --clip_path {folder}/clip"
    train(flags(folder, "with", *SAMPLES.split(), *networks.split()))
    train(flags(folder, "without"))
    assert rows(folder / "with") == rows(folder / "without")
    found = metrics(folder / "with")
    assert set(found) == {"loss", "fvd", "clipsim"} and set(metrics(folder / "without")) == {"loss"}
    assert found["loss"] == metrics(folder / "without")["loss"]
    assert found["fvd"] == pytest.approx(expected_fvd(folder), rel=1e-3)


def expected_fvd(folder: Path) -> float:
    """FVD of videos that the pipeline makes from the final weights, and of the clips."""
    release, network = folder / "release", I3D.load(folder / "i3d").set_train(False)
    pipeline = OpenSoraPipeline.from_pretrained(
        folder / "with/checkpoint-2/model",
        release / "vae",
        release / "text",
        rescale_betas_zero_snr=True,
        prompt_template="{}",
        negative_prompt="",
    )
    real, made = [], []
    for number in range(2):
        with VideoReader(folder / f"data/clips/{number}.mp4") as clip:
            real.append(np.asarray(clip.read(range(FRAMES))))
        text = pipeline.embed_prompt(f"a square in color {number}.", GUIDANCE, 64)
        latents = pipeline.denoise(text, FRAMES, 32, 32, STEPS, GUIDANCE, seed=[1234, 2, number])
        made.append(pipeline.output(latents, "frames")[0])
    statistics = [FeatureStatistics.of(fvd_features(video, network) for video in videos) for videos in (real, made)]
    return frechet_distance(*statistics)


def test_inpaint_training_samples_with_the_conditioning_frames(folder):
    given = VALIDATION.format(folder=folder, frames=5).split()
    mask = ("--mask_config", "scripts/train_configs/mask_config.yaml", "--clip_path", str(folder / "clip"))
    inpaint(inpaint_command(folder, "inpaint", "--dataloader_num_workers", 0, *given, *SAMPLES.split(), *mask)[1:])
    assert set(metrics(folder / "inpaint")) == {"loss", "clipsim"}


@pytest.mark.parametrize(
    "more, message",
    [
        ("--val_samples 2 --zero_stage 3", "use --zero_stage 2"),
        ("--val_samples 2 --latent_cache x --val_latent_cache x", "leave out --latent_cache"),
        ("--val_samples -1", "--val_samples -1: should be at least 0"),
        ("--i3d_path x", "--i3d_path measures the videos of --val_samples"),
    ],
)
def test_contradicting_flags_are_refused(more, message, folder):
    with pytest.raises(UserError, match=message):
        parse_options(flags(folder, "refused", *more.split()))


def test_short_videos_are_refused_before_training(folder):
    given = flags(folder, "short", *SAMPLES.split(), "--i3d_path", str(folder / "i3d"), "--num_frames", "5")
    with pytest.raises(UserError, match="FVD needs 10 frames at least, and most held-out videos have 5"):
        train(given)
    assert not (folder / "short/train_log.csv").exists()
