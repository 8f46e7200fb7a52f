"""The demo: clips match their captions, and the classifier notices if not; data, text encoder, score and models."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from mindspore import Tensor
from processes import ROOT

from opensora.checkpoint.formats.safetensors import read_safetensors, write_safetensors
from opensora.checkpoint.lazy_tensor import ArrayTensor
from opensora.config import commands
from opensora.config.commands import DEMO_MODEL, DEMO_WORLD
from opensora.datasets.media import VideoReader, read_image, write_video
from opensora.datasets.vae import VAEDataOptions, VAEDataset
from opensora.demo.drawing import draw_clip, draw_image
from opensora.demo.reading import read_scene
from opensora.demo.scenes import (
    COLORS,
    DIRECTIONS,
    MOTIONS,
    NEW_COLORS,
    SHAPES,
    WORLDS,
    Object,
    Scene,
    mixed_scenes,
    new_scenes,
    sample_scenes,
    scenes,
    single,
    world_of_side,
)
from opensora.demo.score import ASPECTS, accuracy, judge, make_videos, prompts
from opensora.errors import UserError
from opensora.models import MT5EncoderModel, WFVAEModel
from opensora.models.text_encoder.tokenizer import Tokenizer
from opensora.pipelines import OpenSoraInpaintPipeline, OpenSoraPipeline
from opensora.pipelines.text import embed_text
from opensora.utils.folder_lock import exclusive_folder

SMALL, LARGE = WORLDS["small"], WORLDS["large"]


@pytest.fixture(scope="module")
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(params=[SMALL, LARGE], ids=WORLDS)
def world(request):
    return request.param


def is_read(scene: Scene, video: np.ndarray) -> bool:
    """Whether the reader finds this scene, its objects in any order."""
    return all(judge(scene, video).values())


def degraded(video: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blurred, and with noise: about 34 dB below the original, less than an autoencoder loses."""
    blurred = np.stack([cv2.GaussianBlur(frame, (0, 0), 0.6) for frame in video])
    return np.rint((blurred + rng.normal(0, 4, video.shape)).clip(0, 255)).astype(np.uint8)


def test_captions_and_held_out_scenes(world):
    scene = single("orange", "star", "red", "moves up")
    assert scene.caption() == "an orange star moves up on a red background"
    assert scene.caption(background_first=True) == "an orange star on a red background moves up"
    assert scene.still.caption() == "an orange star on a red background"
    seen, held_out = scenes(False, world), scenes(True, world)
    assert 0.15 < len(held_out) / (len(seen) + len(held_out)) < 0.25
    assert not {scene.caption() for scene in seen} & {scene.caption() for scene in held_out}
    # Held out are combinations of three: every pair of attributes occurs in training.
    combinations = [
        {(scene.objects[0].color, scene.objects[0].shape, scene.background) for scene in of} for of in (held_out, seen)
    ]
    for pair in ((0, 1), (0, 2), (1, 2)):
        pairs_held_out, pairs_seen = ({tuple(values[i] for i in pair) for values in of} for of in combinations)
        assert pairs_held_out <= pairs_seen


def test_scenes_of_two_objects(rng):
    pair = Scene((Object("red", "circle", "moves right"), Object("blue", "star", "turns")), "orange", "striped")
    assert pair.caption() == "a red circle moves right and a blue star turns on a striped orange background"
    assert pair.caption(True) == "on a striped orange background a red circle moves right and a blue star turns"
    assert pair.still.caption() == "a red circle and a blue star on a striped orange background"
    for held_out in (False, True):
        drawn = mixed_scenes(50, held_out, rng, LARGE)
        assert sum(len(scene.objects) == 2 for scene in drawn) == 20
        assert all(scene.is_held_out == held_out for scene in drawn)
        assert all(
            len({scene.background, *(item.color for item in scene.objects)}) > len(scene.objects) for scene in drawn
        )
    assert all(len(scene.objects) == 1 and scene.texture is None for scene in mixed_scenes(50, False, rng, SMALL))


def test_world_is_chosen_by_size():
    assert world_of_side(64) is SMALL and world_of_side(128) is LARGE
    with pytest.raises(UserError, match="96 pixels; the scenes of the demo have 64, 128"):
        world_of_side(96)


def test_new_colors_are_read_as_such(rng, world):
    """Clips for fine-tuning have new colors only; with these known, no clip of the other colors is read otherwise."""
    assert set(commands.NEW_COLORS) == NEW_COLORS.keys() and not NEW_COLORS.keys() & COLORS.keys()
    assert commands.WORLDS == tuple(WORLDS)
    for color in NEW_COLORS:
        drawn = new_scenes(color, 40, rng, world)
        assert {scene.objects[0].color for scene in drawn} == {color}
        for values, found in (
            (COLORS, [scene.background for scene in drawn]),
            (SHAPES, [scene.objects[0].shape for scene in drawn]),
            (MOTIONS, [scene.objects[0].motion for scene in drawn]),
        ):
            assert min(found.count(value) for value in values) >= 3
        for scene in [*drawn, *sample_scenes(20, False, rng, world)]:
            assert read_scene(draw_clip(scene, rng, world), [*COLORS, color]) == scene


def test_clips_of_a_new_color_are_drawn_with_captions(tmp_path, run):
    finished = run("tools/demo/make_new_clips.py", "--output_dir", tmp_path, "--clips", 3)
    assert finished.returncode == 0, finished.stderr
    videos = sorted(tmp_path.glob("*.mp4"))
    assert len(videos) == 3
    for path in videos:
        assert path.with_suffix(".txt").read_text().strip() == path.stem.replace("_", " ")
        with VideoReader(path) as video:
            found = read_scene(np.asarray(video.read(range(SMALL.frames))), [*COLORS, "cyan"])
            assert found is not None and found.caption() == path.stem.replace("_", " ")


@pytest.mark.parametrize("objects", [1, 2])
def test_drawn_clips_are_recognized(rng, tmp_path, world, objects):
    """As they are drawn, after compression, and blurred and noisy."""
    if objects == 2 and not world.pairs:
        pytest.skip("this world has one object")
    for scene in sample_scenes(60, False, rng, world, objects):
        clip = draw_clip(scene, rng, world)
        assert is_read(scene, clip) and is_read(scene, degraded(clip, rng)), scene.caption()
    for number, scene in enumerate(sample_scenes(6, True, rng, world, objects)):
        with write_video(tmp_path / f"{number}.mp4", 8) as write:
            write(draw_clip(scene, rng, world))
        with VideoReader(tmp_path / f"{number}.mp4") as video:
            assert is_read(scene, np.asarray(video.read(range(world.frames)))), scene.caption()


def test_clips_of_other_lengths_are_recognized(rng):
    for scene in mixed_scenes(6, False, rng, LARGE):
        clip = draw_clip(scene, rng, LARGE, frames=33)
        assert clip.shape == (33, 128, 128, 3) and is_read(scene, clip)


def test_shapes_stay_apart_and_inside(rng, world):
    for scene in mixed_scenes(40, False, rng, world):
        for frame in draw_clip(replace(scene, texture=None), rng, world):
            different = (frame != COLORS[scene.background]).any(-1)
            assert not (different[[0, -1]].any() or different[:, [0, -1]].any())
            assert cv2.connectedComponents(different.astype(np.uint8))[0] == 1 + len(scene.objects)


def test_motion_starts_near_the_center(rng, world):
    """Otherwise directions would differ only in the order of the frames."""
    clip = draw_clip(single("white", "circle", "black", "moves left"), rng, world)
    first, last = (
        np.average(np.arange(world.side), weights=frame[..., 0].sum(0).astype(float) - 20 * world.side) / world.side
        for frame in (clip[0], clip[-1])
    )
    assert abs(first - 0.5) < 0.16 and last < 0.3


def test_wrong_clips_are_recognized(rng, world):
    scene = single("red", "circle", "blue", "moves right")
    clip = draw_clip(scene, rng, world)
    mirrored = read_scene(clip.swapaxes(1, 2))
    assert mirrored.objects[0].motion == "moves down"
    assert read_scene(clip[::-1]) == single("red", "circle", "blue", "moves left")
    assert read_scene(np.repeat(clip[:1], world.frames, 0)) == scene.still
    assert read_scene(clip[..., ::-1]) == single("blue", "circle", "red", "moves right")
    reversed_clip = draw_clip(single("red", "square", "blue", "shrinks"), rng, world)[::-1]
    assert read_scene(reversed_clip) == single("red", "square", "blue", "grows")
    assert read_scene(np.full_like(clip, COLORS["blue"])) is None  # no shape
    noise = rng.integers(0, 256, clip.shape, np.uint8)
    assert read_scene(noise) != scene


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_are_recognized_at_every_size(shape, rng, world):
    for _ in range(20):
        scene = single("white", shape, "black")
        image = draw_image(scene, rng, world)
        assert image.shape == (world.side, world.side, 3)
        assert read_scene(image[None]) == scene


def test_judge_and_accuracy():
    scene = single("red", "circle", "blue", "moves right")
    clip = draw_clip(scene, np.random.default_rng(1), SMALL)
    right, wrong = judge(scene, clip), judge(scene, clip[::-1])
    assert all(right.values()) and set(right) == set(ASPECTS)
    assert wrong == {**right, "direction": False, "motion": False, "everything": False}
    assert not any(value for name, value in judge(scene, np.zeros_like(clip)).items() if name != "texture")
    assert "direction" not in judge(single("red", "circle", "blue", "grows"), clip)
    assert accuracy([right, right, right, wrong])["direction"] == 0.75
    for objects in (1, 2):
        asked = prompts(11, 3, LARGE, objects)
        assert [scene.is_held_out for scene in asked] == [False, True] * 5 + [False]
        assert {len(scene.objects) for scene in asked} == {objects}


def test_judge_of_two_objects(rng):
    """Objects are compared in the order that fits best; attributes of the wrong object do not count."""
    circle, star = Object("red", "circle", "moves right"), Object("blue", "star", "turns")
    asked = Scene((circle, star), "white", "dotted")
    assert is_read(asked, draw_clip(Scene((star, circle), "white", "dotted"), rng, LARGE))
    swapped = Scene((replace(circle, color="blue"), replace(star, color="red")), "white", "dotted")
    judged = judge(asked, draw_clip(swapped, rng, LARGE))
    assert judged["background"] and judged["texture"] and judged["shape"] != judged["color"]
    assert not judged["everything"]
    one = judge(asked, draw_clip(replace(asked, objects=(circle,)), rng, LARGE))
    assert one == {name: name in ("background", "texture") for name in ASPECTS}
    plain = judge(asked, draw_clip(replace(asked, texture="striped"), rng, LARGE))
    assert [name for name, value in plain.items() if not value] == ["texture", "everything"]


def test_generated_data_matches_its_captions(tmp_path, run):
    """Training data has no held-out scenes; a second run changes nothing."""
    flags = ("tools/demo/make_data.py", "--output_dir", tmp_path, "--clips", 5, "--pictures", 4, "--held_out", 3)
    flags += ("--details", 4)
    for command in (flags, ("opensora/demo/score.py", "--output_dir", tmp_path, "--model_path", "/nowhere")):
        with exclusive_folder(tmp_path):
            refused = run(*command)
        assert refused.returncode == 1 and "another run writes to this folder" in refused.stderr
    finished = run(*map(str, flags))
    assert finished.returncode == 0, finished.stderr
    entries = json.loads((tmp_path / "train/captions.json").read_text())
    held_out = json.loads((tmp_path / "held_out/captions.json").read_text())
    assert len(entries) == 5 and len(held_out) == 3
    every = scenes(False, SMALL) + scenes(True, SMALL)
    known = {scene.caption(order): scene for scene in every for order in (False, True)}
    assert not any(known[entry["cap"]].is_held_out for entry in entries)
    assert all(known[entry["cap"]].is_held_out for entry in held_out)
    for entry in entries:
        with VideoReader(tmp_path / "train/clips" / entry["path"]) as video:
            assert read_scene(np.asarray(video.read(range(SMALL.frames)))) == known[entry["cap"]]
    for path in (tmp_path / "train/details").iterdir():
        with VideoReader(path) as video:
            frames = np.asarray(video.read(range(SMALL.frames)))
        assert frames.shape == (17, 32, 32, 3) and (frames != frames[0, 0, 0]).any()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.mp4")}
    assert len(before) == 5 + 3 + 4
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
        f"{color} {shape} {motion} and an on a striped dotted background"
        for color, shape, motion in zip(COLORS, SHAPES * 2, (*MOTIONS, ""))
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
        single(*words, motion)
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
        num_frames=WORLDS[DEMO_WORLD].frames,
        height=WORLDS[DEMO_WORLD].side,
        width=WORLDS[DEMO_WORLD].side,
        num_inference_steps=20,
        guidance_scale=4.0,
        max_sequence_length=24,
        conditional_pixel_values_path=[str(DEMO_MODEL / "picture.png")],
        crop_for_hw=True,
    )
    difference = np.abs(video[0].astype(float) - read_image(DEMO_MODEL / "picture.png"))
    assert difference.mean() < 15
    found = read_scene(video)
    assert (found.objects[0].color, found.background) == ("purple", "yellow")


@pytest.mark.parametrize("path", ["scripts/demo/wfvae.json", "scripts/demo/transformer/config.json"])
def test_demo_configs_name_known_models(path):
    assert json.loads((ROOT / path).read_text())["_class_name"] in ("WFVAEModel", "OpenSoraT2V_v1_3")


def test_latent_scale_normalizes_the_latents(tmp_path, run):
    """Afterwards the latents of the measured videos have mean 0 and standard deviation 1."""
    vae = WFVAEModel(**json.loads((ROOT / "scripts/demo/wfvae.json").read_text()))
    vae.save_pretrained(tmp_path / "vae")
    (tmp_path / "videos").mkdir()
    rng = np.random.default_rng(2)
    videos = [draw_clip(scene, rng, SMALL) for scene in sample_scenes(2, False, rng, SMALL)]
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
