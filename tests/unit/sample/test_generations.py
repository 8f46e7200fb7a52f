"""sample.py with tiny releases of every generation in the published layouts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from opensora.cli import sample
from opensora.cli.tiny_release import LAYOUTS, write_release
from opensora.datasets.media import VideoReader, read_image
from opensora.pipelines import OpenSoraPipeline
from opensora.sample.options import parse_options

SMALL = ["--device", "CPU", "--text_prompt", "A red circle"]


@pytest.fixture(scope="module")
def releases(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("releases")
    for version in LAYOUTS:
        write_release(folder, version)
    return folder


def flags_of(releases: Path, version: str, transformer: str = "", vae: str = "") -> list[str]:
    layout = LAYOUTS[version]
    folder = releases / layout.release
    weights = {
        "model_path": folder / (transformer or next(iter(layout.transformers))),
        "ae_path": releases / LAYOUTS[vae or version].release / "vae",
        "text_encoder_name": releases / layout.text_encoder,
    }
    return [*SMALL, *(f"--{name}={path}" for name, path in weights.items())]


@pytest.mark.parametrize(
    "version, more, frames",
    [
        ("v1_0", ["--num_sampling_steps", "2"], 17),
        ("v1_1", ["--num_sampling_steps", "2", "--enable_tiling", "--tile_overlap_factor", "0.25"], 65),
        ("v1_2", "--num_frames 29 --num_sampling_steps 2 --model_type dit --enable_tiling --save_memory".split(), 29),
    ],
)
def test_video_is_made(version, more, frames, releases, tmp_path):
    sample.main([*flags_of(releases, version), "--height", "32", "--width", "48", f"--save_img_path={tmp_path}", *more])
    (path,) = tmp_path.glob("*.mp4")
    with VideoReader(path) as video:
        assert (len(video), video.height, video.width, round(video.fps)) == (frames, 32, 48, 24)
    arguments = json.loads(path.with_suffix(".json").read_text())["arguments"]
    assert arguments["version"] == version and arguments["prediction_type"] == "epsilon"


@pytest.mark.parametrize("version, transformer", [("v1_1", "65x512x512"), ("v1_2", "1x480p")])
def test_image_is_made_with_a_cache(version, transformer, releases, tmp_path):
    size = ["--force_images", "--height", "48", "--width", "32", "--num_sampling_steps", "12", "--cache", "first_block"]
    sample.main([*flags_of(releases, version, transformer), f"--save_img_path={tmp_path}", *size])
    (path,) = tmp_path.glob("*.jpg")
    assert read_image(path).shape == (48, 32, 3)
    assert json.loads(path.with_suffix(".json").read_text())["model_calls"] < 12


@pytest.mark.parametrize("version", ["v1_0", "v1_2"])
def test_pipeline_knows_the_generation(version, releases):
    layout = LAYOUTS[version]
    folder = releases / layout.release
    pipeline = OpenSoraPipeline.from_pretrained(
        folder / next(iter(layout.transformers)), folder / "vae", releases / layout.text_encoder
    )
    assert pipeline.generation.name == version
    frames = pipeline("A red circle", height=32, width=48, num_inference_steps=1, cache="easy")
    assert frames.shape == (1, {"v1_0": 17, "v1_2": 93}[version], 32, 48, 3)
    with pytest.raises(ValueError, match="height 40 is not a multiple of 16"):
        pipeline("A red circle", height=40)


def options_of(*flags):
    return parse_options(list(map(str, flags)))[0]


def test_defaults_are_those_of_the_weights(releases, tmp_path):
    video = options_of(*flags_of(releases, "v1_1", "221x512x512"))
    assert (video.version, video.ae, video.num_frames, video.height, video.width) == (
        "v1_1",
        "CausalVAEModel_4x8x8",
        221,
        512,
        512,
    )
    assert (video.sample_method, video.num_sampling_steps, video.guidance_scale, video.fps) == ("PNDM", 150, 7.5, 24)
    image = options_of(*flags_of(releases, "v1_1"), "--num_frames", 1)
    assert (image.num_sampling_steps, image.guidance_scale, image.max_sequence_length) == (50, 5.0, 300)
    later = options_of(*flags_of(releases, "v1_2", "29x720p"))
    assert (later.num_frames, later.height, later.width, later.num_sampling_steps) == (29, 720, 1280, 100)
    assert options_of(*flags_of(releases, "v1_3")).version == "v1_3"
    (tmp_path / "run.yaml").write_text("num_sampling_steps: 7\n")
    assert options_of(*flags_of(releases, "v1_1"), "--config", tmp_path / "run.yaml").num_sampling_steps == 7


def test_version_of_v1_0_names_the_subfolder(releases):
    flags = flags_of(releases, "v1_0")
    release = releases / LAYOUTS["v1_0"].release
    options = options_of(*flags, "--model_path", release, "--version", "65x256x256")
    assert options.model_path == str(release / "65x256x256")
    assert (options.version, options.num_frames, options.height, options.width) == ("v1_0", 65, 256, 256)


@pytest.mark.parametrize(
    "version, changed, more, error",
    [
        (
            "v1_2",
            {"vae": "v1_1"},
            [],
            "29x480p holds a transformer of Open-Sora-Plan v1.2, .*vae an autoencoder of .*1.1",
        ),
        ("v1_3", {"vae": "v1_2"}, [], "transformer of Open-Sora-Plan v1.3, .* autoencoder of Open-Sora-Plan v1.2"),
        ("v1_1", {}, ["--version", "v1_2"], "--version v1_2 contradicts .*65x512x512, which holds .*v1.1"),
        ("v1_1", {}, ["--version", "v9"], "'v9' is not one of v1_0, v1_1, v1_2, v1_3"),
        ("v1_1", {}, ["--num_frames", "29"], "makes videos of 65 frames, or images: use --num_frames 65 or 1, not 29"),
        ("v1_1", {}, ["--height", "40"], "height 40 is not a multiple of 16 .nearest: 32, 48"),
        ("v1_1", {}, ["--model_type", "i2v"], "--model_type i2v is for v1.3"),
        ("v1_3", {}, ["--tile_overlap_factor", "0.5"], "the autoencoder of Open-Sora-Plan v1.3 has no tiles"),
        ("v1_1", {}, ["--enable_tiling", "--tile_overlap_factor", "0.3"], "overlap of 0.3 do not meet"),
    ],
)
def test_what_does_not_go_together_is_refused(version, changed, more, error, releases):
    transformer = "29x480p" if version == "v1_2" else ""
    with pytest.raises(ValueError, match=error):
        options_of(*flags_of(releases, version, transformer, **changed), *more)
