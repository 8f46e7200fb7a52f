"""The demo: clips match their captions, and the classifier notices if not; data, text encoder, score and models."""

from __future__ import annotations

import json
from dataclasses import replace
from operator import attrgetter
from pathlib import Path

import numpy as np
import pytest
from mindspore import Tensor
from processes import ROOT

from opensora.checkpoint.formats.safetensors import read_safetensors, write_safetensors
from opensora.checkpoint.lazy_tensor import ArrayTensor
from opensora.config import commands
from opensora.config.commands import DEMO_MODEL
from opensora.datasets.media import VideoReader, read_image, write_video
from opensora.datasets.vae import VAEDataOptions, VAEDataset
from opensora.demo.drawing import draw_clip, draw_image
from opensora.demo.reading import read_scene
from opensora.demo.scenes import (
    COLORS,
    DIRECTIONS,
    FRAMES,
    MOTIONS,
    NEW_COLORS,
    SHAPES,
    SIDE,
    Scene,
    new_scenes,
    sample_scenes,
    scenes,
)
from opensora.demo.score import accuracy, judge, make_videos, prompts
from opensora.models import MT5EncoderModel, WFVAEModel
from opensora.models.text_encoder.tokenizer import Tokenizer
from opensora.pipelines import OpenSoraInpaintPipeline, OpenSoraPipeline
from opensora.pipelines.text import embed_text
from opensora.utils.folder_lock import exclusive_folder


@pytest.fixture(scope="module")
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_captions_and_held_out_scenes():
    scene = Scene("orange", "star", "red", "moves up")
    assert scene.caption() == "an orange star moves up on a red background"
    assert scene.caption(background_first=True) == "an orange star on a red background moves up"
    assert replace(scene, motion=None).caption() == "an orange star on a red background"
    seen, held_out = scenes(False), scenes(True)
    assert 0.15 < len(held_out) / (len(seen) + len(held_out)) < 0.25
    assert not {scene.caption() for scene in seen} & {scene.caption() for scene in held_out}
    # Held out are combinations of three: every pair of attributes occurs in training.
    for pair in (("color", "shape"), ("color", "background"), ("shape", "background")):
        of = attrgetter(*pair)
        assert set(map(of, held_out)) <= set(map(of, seen))


def test_new_colors_are_read_as_such(rng):
    """Clips for fine-tuning have new colors only; with these known, no clip of the other colors is read otherwise."""
    assert set(commands.NEW_COLORS) == NEW_COLORS.keys() and not NEW_COLORS.keys() & COLORS.keys()
    for color in NEW_COLORS:
        drawn = new_scenes(color, 40, rng)
        assert {scene.color for scene in drawn} == {color}
        for values, name in ((COLORS, "background"), (SHAPES, "shape"), (MOTIONS, "motion")):
            counts = [sum(getattr(scene, name) == value for scene in drawn) for value in values]
            assert min(counts) >= 3, name
        for scene in [*drawn, *sample_scenes(40, False, rng)]:
            assert read_scene(draw_clip(scene, rng), [*COLORS, color]) == scene


def test_clips_of_a_new_color_are_drawn_with_captions(tmp_path, run):
    finished = run("tools/demo/make_new_clips.py", "--output_dir", tmp_path, "--clips", 3)
    assert finished.returncode == 0, finished.stderr
    videos = sorted(tmp_path.glob("*.mp4"))
    assert len(videos) == 3
    for path in videos:
        assert path.with_suffix(".txt").read_text().strip() == path.stem.replace("_", " ")
        with VideoReader(path) as video:
            found = read_scene(np.asarray(video.read(range(FRAMES))), [*COLORS, "cyan"])
            assert found is not None and found.caption() == path.stem.replace("_", " ")


def test_drawn_clips_are_recognized(rng, tmp_path):
    """Before and after compression."""
    for scene in sample_scenes(200, False, rng):
        assert read_scene(draw_clip(scene, rng)) == scene
    for number, scene in enumerate(sample_scenes(12, True, rng)):
        with write_video(tmp_path / f"{number}.mp4", 8) as write:
            write(draw_clip(scene, rng))
        with VideoReader(tmp_path / f"{number}.mp4") as video:
            assert read_scene(np.asarray(video.read(range(FRAMES)))) == scene


def test_motion_starts_near_the_center(rng):
    """Otherwise directions would differ only in the order of the frames."""
    clip = draw_clip(Scene("white", "circle", "black", "moves left"), rng)
    first, last = (
        np.average(np.arange(SIDE), weights=frame[..., 0].sum(0).astype(float) - 20 * SIDE) / SIDE
        for frame in (clip[0], clip[-1])
    )
    assert abs(first - 0.5) < 0.16 and last < 0.3


def test_wrong_clips_are_recognized(rng):
    scene = Scene("red", "circle", "blue", "moves right")
    clip = draw_clip(scene, rng)
    assert read_scene(clip[::-1]).motion == "moves left"
    assert read_scene(clip.swapaxes(1, 2)).motion == "moves down"
    assert read_scene(np.repeat(clip[:1], FRAMES, 0)) == replace(scene, motion=None)
    assert read_scene(clip[..., ::-1]).color == "blue" and read_scene(clip[..., ::-1]).background == "red"
    assert read_scene(draw_clip(Scene("red", "square", "blue", "shrinks"), rng)[::-1]).motion == "grows"
    assert read_scene(np.full_like(clip, COLORS["blue"])) is None  # no shape
    noise = rng.integers(0, 256, clip.shape, np.uint8)
    assert read_scene(noise) != scene


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_are_recognized_at_every_size(shape, rng):
    for _ in range(20):
        image = draw_image(Scene("white", shape, "black"), rng)
        assert image.shape == (SIDE, SIDE, 3)
        assert read_scene(image[None]) == Scene("white", shape, "black")


def test_judge_and_accuracy():
    scene = Scene("red", "circle", "blue", "moves right")
    clip = draw_clip(scene, np.random.default_rng(1))
    right, wrong = judge(scene, clip), judge(scene, clip[::-1])
    assert all(right.values()) and set(right) == {"color", "background", "shape", "direction", "motion", "everything"}
    assert wrong == {**right, "direction": False, "motion": False, "everything": False}
    assert not any(judge(scene, np.zeros_like(clip)).values())
    assert "direction" not in judge(replace(scene, motion="grows"), clip)
    assert accuracy([right, right, right, wrong])["direction"] == 0.75
    scenes = prompts(11, seed=3)
    assert len(scenes) == 11 and sum(scene.is_held_out for scene in scenes) == 5


def test_generated_data_matches_its_captions(tmp_path, run):
    """Training data has no held-out scenes; a second run changes nothing."""
    flags = ("tools/demo/make_data.py", "--output_dir", tmp_path, "--clips", 5, "--pictures", 4, "--held_out", 3)
    for command in (flags, ("opensora/demo/score.py", "--output_dir", tmp_path, "--model_path", "/nowhere")):
        with exclusive_folder(tmp_path):
            refused = run(*command)
        assert refused.returncode == 1 and "another run writes to this folder" in refused.stderr
    finished = run(*map(str, flags))
    assert finished.returncode == 0, finished.stderr
    entries = json.loads((tmp_path / "train/captions.json").read_text())
    held_out = json.loads((tmp_path / "held_out/captions.json").read_text())
    assert len(entries) == 5 and len(held_out) == 3
    known = {scene.caption(order): scene for scene in scenes(False) + scenes(True) for order in (False, True)}
    assert not any(known[entry["cap"]].is_held_out for entry in entries)
    assert all(known[entry["cap"]].is_held_out for entry in held_out)
    for entry in entries:
        with VideoReader(tmp_path / "train/clips" / entry["path"]) as video:
            assert read_scene(np.asarray(video.read(range(FRAMES)))) == known[entry["cap"]]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.mp4")}
    assert run(*map(str, flags)).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.mp4")} == before
    assert json.loads((tmp_path / "train/captions.json").read_text()) == entries
    root, embeddings, annotation = (tmp_path / "train.txt").read_text().strip().split(",")
    assert Path(root).is_dir() and embeddings.endswith("embeddings/train") and Path(annotation).is_file()


def test_text_encoder_distinguishes_word_positions(tmp_path, run):
    """Each word is one token, and its state depends on its position."""
    finished = run("tools/demo/make_text_encoder.py", "--output_dir", str(tmp_path))
    assert finished.returncode == 0, finished.stderr
    tokenizer, encoder = Tokenizer(tmp_path), MT5EncoderModel.from_pretrained(tmp_path)
    words = [
        f"{color} {shape} {motion} on background" for color, shape, motion in zip(COLORS, SHAPES * 2, (*MOTIONS, ""))
    ]
    assert all(len(tokenizer.tokenizer.tokenize(text)) == len(text.split()) for text in words)
    texts = ["a red circle moves right on a blue background", "a blue circle moves right on a red background"]
    states = embed_text(encoder, tokenizer, texts, 24).states
    states /= np.linalg.norm(states, axis=-1, keepdims=True)
    assert np.abs(states).max() < 1 and (states[0, 2] @ states[1, 2]) < 0.95  # the word circle
    assert (states[0, 1] @ states[1, 7]) < 0.9  # the word red


def test_demo_model_follows_the_prompt():
    """Colors and directions, which are nearly always right according to the model card; and the model is small."""
    assert sum(path.stat().st_size for path in DEMO_MODEL.rglob("*")) < 40e6
    pipeline = OpenSoraPipeline.from_pretrained(
        DEMO_MODEL / "transformer",
        DEMO_MODEL / "vae",
        DEMO_MODEL / "text_encoder",
        prompt_template="{}",
        negative_prompt="",
    )
    asked = [
        Scene(*words, motion)
        for words, motion in zip(
            (
                ("red", "circle", "blue"),
                ("yellow", "star", "purple"),
                ("green", "square", "white"),
                ("white", "circle", "black"),
            ),
            DIRECTIONS,
        )
    ]
    videos = make_videos(pipeline, asked, guidance_scale=4.0, steps=20, seed=1234)
    right = accuracy([judge(scene, video) for scene, video in zip(asked, videos)])
    assert min(right["color"], right["background"], right["direction"]) >= 0.75, right


def test_inpaint_demo_model_keeps_the_conditioning_image():
    """The first frame resembles the conditioning image, and colors stay."""
    pipeline = OpenSoraInpaintPipeline.from_pretrained(
        DEMO_MODEL / "inpaint",
        DEMO_MODEL / "vae",
        DEMO_MODEL / "text_encoder",
        prompt_template="{}",
        negative_prompt="",
    )
    (video,) = pipeline(
        (DEMO_MODEL / "picture_prompt.txt").read_text().strip(),
        num_frames=FRAMES,
        height=SIDE,
        width=SIDE,
        num_inference_steps=20,
        guidance_scale=4.0,
        max_sequence_length=24,
        conditional_pixel_values_path=[str(DEMO_MODEL / "picture.png")],
        crop_for_hw=True,
    )
    difference = np.abs(video[0].astype(float) - read_image(DEMO_MODEL / "picture.png"))
    assert difference.mean() < 15
    found = read_scene(video)
    assert (found.color, found.background) == ("purple", "yellow")


@pytest.mark.parametrize("path", ["scripts/demo/wfvae.json", "scripts/demo/transformer/config.json"])
def test_demo_configs_name_known_models(path):
    assert json.loads((ROOT / path).read_text())["_class_name"] in ("WFVAEModel", "OpenSoraT2V_v1_3")


def test_latent_scale_normalizes_the_latents(tmp_path, run):
    """Afterwards the latents of the measured videos have mean 0 and standard deviation 1."""
    vae = WFVAEModel(**json.loads((ROOT / "scripts/demo/wfvae.json").read_text()))
    vae.save_pretrained(tmp_path / "vae")
    (tmp_path / "videos").mkdir()
    videos = [draw_clip(scene, np.random.default_rng(2)) for scene in sample_scenes(2, False, np.random.default_rng(2))]
    for number, video in enumerate(videos):
        with write_video(tmp_path / f"videos/{number}.mkv", 8) as write:
            write(video)
    finished = run(
        *f"tools/ckpt/set_latent_scale.py --ae_path {tmp_path}/vae --video_path {tmp_path}/videos".split(),
        *"--num_frames 17 --resolution 64 --device CPU".split(),
    )
    assert finished.returncode == 0, finished.stderr
    scaled = WFVAEModel.from_pretrained(tmp_path / "vae")
    assert scaled.config.base_channels == vae.config.base_channels
    dataset = VAEDataset(VAEDataOptions(str(tmp_path / "videos"), num_frames=17, resolution=64, sample_rate=1))
    clips = Tensor(np.stack([dataset.item(i, np.random.default_rng(0))["video"] for i in range(2)]))
    latents = scaled.normalize(scaled.encode(clips).mode()).asnumpy()
    assert np.abs(latents.mean((0, 2, 3, 4))).max() < 1e-3
    assert np.abs(latents.std((0, 2, 3, 4)) - 1).max() < 1e-3


def test_cast_to_float16_rejects_overflow(tmp_path, run):
    values = {"a": np.float32([[1.5, -3]]), "steps": np.int32([70000])}
    write_safetensors(tmp_path / "in.safetensors", {name: ArrayTensor(value) for name, value in values.items()})
    command = ("tools/ckpt/cast_safetensors.py", "-i", tmp_path / "in.safetensors", "-o", tmp_path / "out.safetensors")
    assert run(*command).returncode == 0
    found = {name: tensor.numpy() for name, tensor in read_safetensors(tmp_path / "out.safetensors").items()}
    assert found["a"].dtype == np.float16 and (found["a"] == values["a"]).all()
    assert found["steps"].dtype == np.int32 and (found["steps"] == values["steps"]).all()
    write_safetensors(tmp_path / "in.safetensors", {"a": ArrayTensor(np.float32([1e6]))})
    (tmp_path / "out.safetensors").unlink()
    finished = run(*command)
    assert finished.returncode and "a: holds 1e+06, more than float16's 65504" in finished.stderr
    assert "Traceback" not in finished.stderr and not (tmp_path / "out.safetensors").exists()


def test_contact_sheet_tiles_frames(tmp_path, run):
    clip = draw_clip(Scene("red", "circle", "blue", "moves right"), np.random.default_rng(0))
    for name in ("a.mkv", "b.mkv"):
        with write_video(tmp_path / name, 8) as write:
            write(clip)
    finished = run(
        *f"examples/contact_sheet.py --output {tmp_path}/sheet.png {tmp_path}/a.mkv {tmp_path}/b.mkv".split(),
        *"--columns 5".split(),
    )
    assert finished.returncode == 0, finished.stderr
    sheet = read_image(tmp_path / "sheet.png")
    assert sheet.shape == (2 * SIDE + 4, 5 * SIDE + 4 * 4, 3)
    assert (
        read_scene(np.stack([sheet[:SIDE, i * (SIDE + 4) : i * (SIDE + 4) + SIDE] for i in range(5)])).motion
        == "moves right"
    )
