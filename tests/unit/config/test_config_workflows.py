"""scripts/inference.py, inference-long.py and train.py as users run them, with tiny random models."""

from __future__ import annotations

import csv
import json
import re
import weakref
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from made_clips import make_clips, moving_square
from processes import ROOT, msrun
from raw_frames import keeping_frames, largest_step
from tiny_models import make_release
from toy_vae import GoldenNoise, ToyVAE
from training_runs import assert_same, rows

from opensora.config.mmengine import parse_configs
from opensora.datasets.bucketed.buckets import Buckets
from opensora.datasets.media import VideoReader, read_image, save_image, write_video
from opensora.device import Device
from opensora.models import STDiT2, VideoAutoencoderKL
from opensora.pipelines.long_video import Scene, make_long_video
from opensora.pipelines.stdit import ClipSize
from opensora.registry import REGISTRY, build, check_family, check_folders
from opensora.sample import config_inference as inference
from opensora.sample.config_job import Job, file_name, plan_requests, without_effect
from opensora.train import config_run
from opensora.train.checkpoint import checkpoints
from opensora.utils.folder_lock import exclusive_folder

CPU = Device("CPU", 1, "fp32")
STDIT = dict(depth=2, hidden_size=48, num_heads=4, input_sq_size=64, qk_norm=True)
KL = dict(
    block_out_channels=[8, 8, 16, 16],
    norm_num_groups=4,
    down_block_types=["DownEncoderBlock2D"] * 4,
    up_block_types=["UpDecoderBlock2D"] * 4,
)
BUCKETS = {"144p": {4: (1.0, 2), 1: (1.0, 4)}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Models of both families, a picture, and videos and images to train on."""
    folder = tmp_path_factory.mktemp("workflows")
    make_release(folder / "release")
    ms.set_seed(3)
    VideoAutoencoderKL(**KL).save_pretrained(folder / "kl")
    ms.set_seed(4)
    STDiT2(**STDIT, caption_channels=32, model_max_length=24).save_pretrained(folder / "stdit")
    save_image(folder / "picture.png", moving_square(1, 48, 80, (250, 40, 10))[0])
    table = [["path", "text", "num_frames", "height", "width"]]
    for number in range(8):
        with write_video(folder / f"{number}.mp4", 12) as write:
            write(moving_square(12, 144, 256, (30 * number, 200, 40)))
        table.append([folder / f"{number}.mp4", f"A square, {number}.", 12, 144, 256])
        save_image(folder / f"{number}.png", moving_square(1, 144, 256, (200, 30 * number, 40))[0])
        table.append([folder / f"{number}.png", f"A picture of a square, {number}.", 1, 144, 256])
    with open(folder / "data.csv", "w", newline="") as file:
        csv.writer(file).writerows(table)
    return folder


def write_config(path: Path, **fields) -> Path:
    path.write_text("".join(f"{name} = {value!r}\n" for name, value in fields.items() if value is not ...))
    return path


def parts(folder: Path, **scheduler) -> dict:
    """The models of a config of Open-Sora v1.1."""
    return {
        "model": dict(type="STDiT2-XL/2", from_pretrained=str(folder / "stdit"), enable_flashattn=True),
        "vae": dict(type="VideoAutoencoderKL", from_pretrained=str(folder / "kl"), micro_batch_size=3),
        "text_encoder": dict(type="t5", from_pretrained=str(folder / "release/text"), model_max_length=24),
        "scheduler": dict(type="iddpm", **scheduler),
        "dtype": "fp32",
        "device": "CPU",
    }


def inference_config(folder: Path, path: Path, **changes) -> Path:
    fields = {
        **parts(folder, num_sampling_steps=2, cfg_scale=7.0, cfg_channel=3),
        "num_frames": 4,
        "frame_interval": 3,
        "fps": 24,
        "image_size": (36, 50),
        "multi_resolution": "STDiT2",
        "prompt": ["A car.", "A dog.", "A tree."],
        "batch_size": 2,
        "seed": 42,
        "save_dir": str(path.parent / "samples"),
    }
    return write_config(path, **{**fields, **changes})


def make(config: Path, *flags, long: bool = False) -> None:
    """As scripts/inference.py or inference-long.py does, in this process."""
    inference.run(parse_configs(False, [str(config), *map(str, flags)]), CPU, long)


def train(config: Path, *flags) -> None:
    """As scripts/train.py does, in this process."""
    config_run.run(parse_configs(True, [str(config), *map(str, flags)]), CPU)


@pytest.fixture
def kept_frames(monkeypatch) -> None:
    """What `make` writes can be compared before compression."""
    monkeypatch.setattr(inference, "write_video", keeping_frames(inference.write_video))


def frames_of(path: Path) -> np.ndarray:
    with VideoReader(path) as reader:
        return reader.read(range(len(reader)))


def test_inference(folder, run, tmp_path, kept_frames):
    """Three prompts in batches of two; a part of them alone gives the same videos under the same names."""
    config = inference_config(folder, tmp_path / "video.py")
    finished = run("tests/helpers/raw_frames.py", "scripts/inference.py", config)
    assert finished.returncode == 0, finished.stderr
    assert "warning: image_size (36, 50) is cut to (32, 48)" in finished.stderr
    videos = sorted((tmp_path / "samples").glob("*.mp4"))
    assert [path.name for path in videos] == ["sample_0.mp4", "sample_1.mp4", "sample_2.mp4"]
    with VideoReader(videos[0]) as reader:
        assert (len(reader), reader.height, reader.width, reader.fps) == (4, 32, 48, 8)
    assert not np.array_equal(frames_of(videos[0]), frames_of(videos[1]))
    make(config, "--start-index", "-2", "--batch-size", "1", "--save-dir", tmp_path / "part", "--num-sample", "2")
    assert sorted(path.name for path in (tmp_path / "part").glob("*.mp4")) == [
        "sample_1-0.mp4",
        "sample_1-1.mp4",
        "sample_2-0.mp4",
        "sample_2-1.mp4",
    ]
    assert largest_step(tmp_path / "part/sample_2-0.mp4", videos[2]) <= 1
    assert not np.array_equal(frames_of(tmp_path / "part/sample_2-1.mp4"), frames_of(videos[2]))


def test_images_named_by_their_prompts(folder, capsys, tmp_path):
    """What is there is not made again."""
    config = inference_config(
        folder,
        tmp_path / "image.py",
        num_frames=1,
        prompt=["a/b", "c"],
        prompt_as_path=True,
        scheduler=dict(type="dpm-solver", num_sampling_steps=2, cfg_scale=4.0),
    )
    make(config)
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == [f"{file_name('a/b')}.png", "c.png"]
    assert read_image(tmp_path / "samples/c.png").shape == (32, 48, 3)
    (tmp_path / "samples/c.png").unlink()
    capsys.readouterr()
    make(config)
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [f"saved {tmp_path}/samples/c.png"] and "has no effect" not in printed.err
    (tmp_path / "samples/c.png").unlink()
    make(config, "--prompt", " ".join("abcdefghijklmnopqrstuvwxyz"))  # of 24 tokens at most
    assert "what follows the first 24 has no effect" in capsys.readouterr().err


def test_a_long_video_from_a_picture(folder, run, tmp_path):
    """Three clips of four frames, each beginning with the last one of the clip before; the first with the picture."""
    prompt = json.dumps({"reference_path": str(folder / "picture.png"), "mask_strategy": "0"})
    config = inference_config(
        folder,
        tmp_path / "long.py",
        image_size=(48, 80),
        prompt=[f"|0|a fire|2|ashes{prompt}", "Rain."],
        loop=3,
        condition_frame_length=1,
    )
    finished = run("scripts/inference-long.py", config)
    assert finished.returncode == 0, finished.stderr
    assert [len(frames_of(tmp_path / f"samples/sample_{index}.mp4")) for index in range(2)] == [10, 10]
    with pytest.raises(ValueError, match="1 prompts, 2 entries of reference_path and 1 of mask_strategy"):
        make(
            config,
            "--reference-path",
            "None",
            folder / "picture.png",
            "--prompt",
            "x",
            "--mask-strategy",
            "0",
            long=True,
        )


class LastClips:
    """Counts the clips that are still in memory when the next one is decoded."""

    def __init__(self):
        self.vae, self.transformer, self.alive, self.counts = ToyVAE(), None, [], []

    def latent_shape(self, video_size):
        return 4, *self.vae.get_latent_size(video_size)

    def embed(self, texts):
        return {}

    def sample(self, text, size, latents, mask, noise, progress):
        return ms.Tensor(latents)

    def encode(self, pixels, noise):
        return self.vae.encode(ms.Tensor(pixels)).asnumpy()

    def decode(self, latents):
        self.counts.append(sum(clip() is not None for clip in self.alive))
        clip = self.vae.decode(latents).asnumpy()
        self.alive.append(weakref.ref(clip))
        return clip


def test_many_clips_take_the_memory_of_one():
    pipeline, size = LastClips(), ClipSize(6, 16, 16, 24)
    pieces = map(inference.to_levels, make_long_video(pipeline, [Scene(["a"] * 5)], size, GoldenNoise("memory"), 2))
    assert [next(pieces).shape[1] for _ in range(5)] == [6, 4, 4, 4, 4]
    assert pipeline.counts == [0] * 5


def test_the_other_family(folder, run, tmp_path, kept_frames):
    """Configs of Open-Sora-Plan give what sample.py gives."""
    release = folder / "release"
    config = write_config(
        tmp_path / "plan.py",
        num_frames=5,
        image_size=(32, 64),
        fps=18,
        save_dir=str(tmp_path / "samples"),
        seed=7,
        model=dict(type="OpenSoraT2V_v1_3-2B/122", from_pretrained=str(release / "transformer")),
        device="CPU",
        vae=dict(type="WFVAEModel_D8_4x8x8", from_pretrained=str(release / "vae")),
        prompt=["A boat."],
        text_encoder=dict(type="mt5", from_pretrained=str(release / "text"), model_max_length=64),
        scheduler=dict(
            type="EulerAncestralDiscrete",
            num_sampling_steps=2,
            cfg_scale=7.5,
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
        ),
    )
    make(config)
    sampled = run(
        "tests/helpers/raw_frames.py",
        "opensora/sample/sample.py",
        "--model_path",
        release / "transformer",
        "--ae_path",
        release / "vae",
        "--text_encoder_name_1",
        release / "text",
        "--text_prompt",
        "A boat.",
        "--num_frames",
        5,
        "--height",
        32,
        "--width",
        64,
        "--num_sampling_steps",
        2,
        "--max_sequence_length",
        64,
        "--save_img_path",
        tmp_path / "sampled",
        "--device",
        "CPU",
        "--rescale_betas_zero_snr",
        "--prediction_type",
        "v_prediction",
        "--seed",
        7,
    )
    assert sampled.returncode == 0, sampled.stderr
    (made,) = (tmp_path / "sampled").glob("*.mp4")
    assert largest_step(tmp_path / "samples/sample_0.mp4", made) <= 1
    with pytest.raises(ValueError, match="needs a model that can keep frames: STDiT2-XL/2"):
        make(config, long=True)


def training_config(folder: Path, path: Path, **changes) -> Path:
    fields = {
        **parts(folder, timestep_respacing=""),
        "bucket_config": BUCKETS,
        "num_workers": 1,
        "plugin": "zero2",
        "mask_ratios": {"identity": 0.5, "quarter_random": 0.2, "image_head_tail": 0.3},
        "grad_checkpoint": True,
        "dataset": dict(
            type="VariableVideoTextDataset",
            data_path=str(folder / "data.csv"),
            transform_name="resize_crop",
            cache_dir=str(folder / "cache"),
        ),
        "seed": 42,
        "outputs": str(path.parent / "outputs"),
        "log_every": 2,
        "ckpt_every": 3,
        "lr": 1e-3,
        "grad_clip": 1.0,
        "load": None,
        "epochs": 1,
    }
    return write_config(path, **{**fields, **changes})


@pytest.fixture(scope="module")
def trained(folder, run) -> Path:
    """The config of a run of an epoch, and beside it what the run left. Six batches: 4 of videos, 2 of images."""
    (folder / "run").mkdir()
    config = training_config(folder, folder / "run/train.py")
    finished = run("scripts/train.py", config)
    assert finished.returncode == 0, finished.stderr
    assert ["144p", "4", "1", "2", "8", "4"] in [line.split()[:6] for line in finished.stderr.splitlines()]
    assert "step 6/6 | loss" in finished.stderr
    return config


def test_training_goes_on_exactly_where_it_was(folder, trained, run, tmp_path):
    """From its middle on a resumed run equals the unbroken one, to the last bit."""
    whole = trained.parent / "outputs/000-STDiT2-XL-2"
    assert [path.name for path in checkpoints(whole)] == ["checkpoint-6", "checkpoint-3"]
    assert json.loads((whole / "config.txt").read_text())["bucket_config"]["144p"]["4"] == [1.0, 2]
    assert all(np.isfinite(float(loss)) for _, loss in rows(whole, ("step", "loss")))
    finished = run("scripts/train.py", trained, "--load", whole / "checkpoint-3")
    assert finished.returncode == 0, finished.stderr
    resumed = trained.parent / "outputs/001-STDiT2-XL-2"
    assert rows(resumed) == rows(whole)[3:]
    assert_same(resumed / "checkpoint-6", whole / "checkpoint-6")


def test_resuming_with_other_fields(folder, trained, tmp_path, capsys):
    """Refused where the place in the data or the objective loses its meaning, else listed."""
    whole = trained.parent / "outputs/000-STDiT2-XL-2"
    other = {4: (1.0, 4), 1: (1.0, 4)}
    for changes, words in (
        ({"seed": 5}, "seed 42 -> 5"),
        ({"bucket_config": {"144p": other}}, "bucket_config"),
        ({"scheduler": dict(type="iddpm-speed")}, "scheduler.type iddpm -> iddpm-speed"),
    ):
        with pytest.raises(ValueError, match=f"checkpoint-3 is of a run with other arguments: .*{words}"):
            train(training_config(folder, tmp_path / "train.py", **changes), "--load", whole / "checkpoint-3")
    assert not (tmp_path / "outputs").exists()
    config = training_config(folder, tmp_path / "train.py", seed=5, lr=2e-3, max_train_steps=4, log_every=1)
    train(config, "--load", whole / "checkpoint-3", "--allow-changed-arguments")
    errors = capsys.readouterr().err
    assert "seed 42 -> 5, lr 0.001 -> 0.002" in errors and "they begin with their first epoch" in errors
    assert [step for step, *_ in rows(tmp_path / "outputs/000-STDiT2-XL-2")] == ["4"]


def test_from_scratch_with_trained_weights(folder, trained, tmp_path):
    """Weights, averages and optimizer are those of the checkpoint, the steps those of a new run."""
    whole = trained.parent / "outputs/000-STDiT2-XL-2"
    train(
        training_config(folder, tmp_path / "train.py", max_train_steps=1, seed=5),
        "--load",
        whole,
        "--start-from-scratch",
    )
    output = tmp_path / "outputs/000-STDiT2-XL-2"
    assert [step for step, *_ in rows(output)] == ["1"]
    assert json.loads((output / "checkpoint-1/state.json").read_text())["optimizers"][""]["steps"] == 7
    for name in ("", "/model_ema"):
        make(
            inference_config(folder, tmp_path / "video.py", prompt=["A square."], num_frames=1),
            "--ckpt-path",
            f"{whole}/checkpoint-6{name}",
        )


def test_one_shape_and_the_faster_objective(folder, tmp_path):
    """VideoTextDataset with iddpm-speed, from random weights; no epochs but a number of steps."""
    changes = dict(
        bucket_config=...,
        mask_ratios=...,
        batch_size=4,
        max_train_steps=2,
        ckpt_every=0,
        plugin=...,
        model=dict(type="STDiT2-XL/2", **STDIT),
        scheduler=dict(type="iddpm-speed"),
        dataset=dict(
            type="VideoTextDataset",
            data_path=str(folder / "data.csv"),
            num_frames=2,
            frame_interval=2,
            image_size=(32, 32),
            cache_dir=str(folder / "cache"),
        ),
    )
    train(training_config(folder, tmp_path / "train.py", **changes))
    assert [path.name for path in checkpoints(tmp_path / "outputs/000-STDiT2-XL-2")] == ["checkpoint-2"]


def test_training_of_the_other_family(folder, tmp_path):
    data, release = make_clips(tmp_path / "clips", videos=8, images=8, frames=9, size=(32, 32)), folder / "release"
    config = training_config(
        folder,
        tmp_path / "plan.py",
        bucket_config=...,
        mask_ratios=...,
        max_train_steps=2,
        batch_size=1,
        gradient_accumulation_steps=2,
        model=dict(type="OpenSoraT2V_v1_3-2B/122", from_pretrained=str(release / "transformer")),
        vae=dict(type="WFVAEModel_D8_4x8x8", from_pretrained=str(release / "vae")),
        text_encoder=dict(type="mt5", from_pretrained=str(release / "text"), model_max_length=64),
        scheduler=dict(type="EulerAncestralDiscrete", prediction_type="v_prediction", snr_gamma=5.0),
        dataset=dict(
            type="T2VDataset",
            data=str(data),
            num_frames=5,
            max_hxw=1024,
            group_data=True,
            cache_dir=str(tmp_path / "cache"),
        ),
    )
    options = config_run.plan_options(parse_configs(True, [str(config)]), 2)
    assert options.gradient_accumulation_steps == 2
    train(config)
    output = tmp_path / "outputs/000-OpenSoraT2V_v1_3-2B-122"
    assert len(rows(output)) == 2 and (output / "checkpoint-2/model_ema").is_dir()


def test_processes_share_batches_as_one_process_takes_them(folder, trained, tmp_path):
    """sp_size 2: two processes take half of each batch, and learn what one process learns."""
    config = training_config(
        folder, tmp_path / "train.py", max_train_steps=2, ckpt_every=0, plugin="zero2-seq", sp_size=2
    )
    finished, logs = msrun(2, tmp_path / "logs", "scripts/train.py", config)
    assert finished.returncode == 0, logs[0][-3000:]
    one, two = (
        np.array([[float(x) for x in row] for row in rows(parent / "outputs/000-STDiT2-XL-2")[:2]])
        for parent in (trained.parent, tmp_path)
    )
    assert two.shape == (2, 4) and np.allclose(one, two, rtol=1e-4), (one, two)


@pytest.mark.slow
def test_fifty_steps_with_buckets_on_two_processes(folder, tmp_path):
    """Each takes batches of its own, of videos or of images; the loss falls."""
    config = training_config(
        folder,
        tmp_path / "train.py",
        max_train_steps=50,
        ckpt_every=25,
        mask_ratios=...,
        bucket_config={"144p": {3: (1.0, 2), 1: (1.0, 4)}},
        grad_checkpoint=False,
    )
    finished, logs = msrun(2, tmp_path / "logs", "scripts/train.py", config)
    assert finished.returncode == 0, logs[0][-3000:]
    output = tmp_path / "outputs/000-STDiT2-XL-2"
    losses = [float(loss) for _, loss in rows(output, ("step", "loss"))]
    assert len(losses) == 50 and np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10])
    assert [path.name for path in checkpoints(output)] == ["checkpoint-50", "checkpoint-25"]
    state = json.loads((output / "checkpoint-50/state.json").read_text())
    assert state["position"]["sampler"]["epoch"] == 50 // 3  # six batches are three steps of two processes


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.py")), ids=lambda path: "/".join(path.parts[-3:]))
def test_shipped_configs(path):
    """They can be read, and name types and fields that there are."""
    training = "train" in path.parts
    config = parse_configs(training, [str(path)])
    for part in ("model", "vae", "text_encoder", "scheduler", "dataset"):
        if part in config and config[part].type in REGISTRY:
            assert set(config[part]) - {"type", "snr_gamma"} <= set(REGISTRY[config[part].type].fields), part
    if not training:
        check_family(config, inference.FAMILIES)
        assert Job.of(config).num_frames == (1 if path.stem == "image" else config.num_frames)
    elif config.model.type == config_run.STDIT:
        check_family(config, config_run.FAMILIES)
        levels = Buckets(config_run.stdit_options(config, 2).bucket_config).levels
        assert all((level.frames == 1) == (path.stem == "image") for level in levels)
    else:
        check_family(config, config_run.FAMILIES)
        assert (config_run.plan_options(config, 2).data.num_frames == 1) == (path.stem == "image")


def test_build():
    assert build(None) is None
    scheduler = build(dict(type="iddpm", num_sampling_steps=3, cfg_channel=3), "scheduler")
    assert (scheduler.num_steps, scheduler.cfg_channel) == (3, 3)
    model = build(
        dict(type="STDiT2-XL/2", **STDIT),
        caption_channels=32,
        model_max_length=8,
        input_size=(1, 2, 3),
        dtype=ms.float32,
    )
    assert model.config.caption_channels == 32 and model.config.depth == 2
    for config, kind, words in (
        (dict(type="iddmp"), None, "did you mean iddpm.*choose from STDiT2-XL/2"),
        ({}, None, "type None is no type"),
        (dict(type="t5"), "vae", "'t5' is no vae that is known"),
        (dict(type="t5", from_pretraned="x"), None, "no field 'from_pretraned' .did you mean from_pretrained"),
        (dict(type="iddpm", depth=3), None, "iddpm has no field 'depth'; its fields are num_sampling_steps"),
        (dict(type="WFVAEModel_D8_4x8x8"), None, "from_pretrained is missing"),
    ):
        with pytest.raises(ValueError, match=words):
            build(config, kind)
    with pytest.raises(FileNotFoundError, match="DeepFloyd/t5-v1_1-xxl: no such file .* huggingface-cli download"):
        build(dict(type="t5", from_pretrained="DeepFloyd/t5-v1_1-xxl", cache_dir="nowhere"))


def test_what_the_hub_has_cached_is_found(folder, tmp_path):
    snapshot = tmp_path / "models--stabilityai--kl/snapshots/0123"
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(folder / "kl")
    (tmp_path / "models--stabilityai--kl/refs").mkdir()
    (tmp_path / "models--stabilityai--kl/refs/main").write_text("0123")
    vae = build(
        dict(type="VideoAutoencoderKL", from_pretrained="stabilityai/kl", cache_dir=str(tmp_path), micro_batch_size=2)
    )
    assert vae.config.micro_batch_size == 2


JOB = dict(num_frames=4, image_size=(32, 32), fps=24, save_dir="samples")


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"loop": 2}, "condition_frame_length None: with loop 2 it should be from 1 to 3"),
        ({"loop": 2, "condition_frame_length": 4}, "from 1 to 3"),
        ({"num_sample": 0}, "num_sample 0"),
        ({"frame_interval": 30}, "less than 1 frame a second"),
        ({"image_size": (32,)}, "height and width"),
        ({"image_size": 512}, "image_size 512: should be height and width"),
        ({"image_size": (32.5, 64)}, "whole numbers"),
        ({"loop": 2, "condition_frame_length": "2"}, "condition_frame_length '2'"),
        ({"sample_name": "s" * 51}, "at most 50 bytes"),
        ({"batch_size": 1.5}, "batch_size 1.5: should be a whole number"),
    ],
)
def test_jobs_that_cannot_be(changes, words):
    with pytest.raises(ValueError, match=words):
        Job(**{**JOB, **changes})


PROMPTS = [
    "a/b",
    "a_b",
    "a\\b",
    "a\nb",
    "a_b-" + "0" * 16,
    "a",
    "a",
    "a ",
    " a",
    "A",
    "",
    "",
    " ",
    ".",
    "..",
    ".a",
    "_a",
    "_10",
    "a-0",
    "ж" * 200,
    "ж" * 201,
    "ж" * 75,
    "x" * 5000,
    'a{"mask_strategy": ""}',
    'a{"mask_strategy": "None"}',
    file_name("a/b"),
]


def test_prompts_never_share_a_name():
    """Nor does a name depend on the part of the list that is run; it fits a file's name, also that of a temporary."""
    for num_sample in (1, 2):
        job = Job(**JOB, prompt_as_path=True, num_sample=num_sample, sample_name="s" * 50)

        def names(first: int, last: int) -> list:
            config = {"prompt": PROMPTS[first:last], "earlier_prompts": PROMPTS[:first], "first_index": first}
            return [
                job.path(request, number).name
                for request in plan_requests(config, job, long=True)
                for number in range(num_sample)
            ]

        whole = names(0, len(PROMPTS))
        assert len(set(whole)) == num_sample * len(PROMPTS)
        assert max(len(name.encode()) for name in whole) < 255 - len(".01234567.part")
        assert sum((names(place, place + 1) for place in range(len(PROMPTS))), []) == whole
    single, double = (Job(**JOB, prompt_as_path=True, num_sample=count) for count in (1, 2))
    (x_0, x) = plan_requests({"prompt": ["x-0", "x"]}, single, long=False)
    assert single.path(x_0, 0) != double.path(x, 0)
    assert not any(file_name(prompt).startswith(".") for prompt in PROMPTS)


def test_names_of_results():
    assert re.fullmatch("a_b_c-[0-9a-f]{16}", file_name("a/b\nc")) and len(file_name("ж" * 200).encode()) < 170
    requests = plan_requests({"prompt": ["Sunrise.", "x"], "first_index": 3}, Job(**JOB), long=False)
    paths = [str(Job(**JOB).path(request, 0)) for request in requests]
    assert paths == ["samples/sample_3.mp4", "samples/sample_4.mp4"]
    job = Job(**JOB, prompt_as_path=True, num_sample=2, sample_name="demo_")
    assert str(job.path(requests[0], 1)) == "samples/demo_Sunrise.-1.mp4"
    (empty,) = plan_requests({"prompt": [""]}, job, long=False)
    assert str(Job(**JOB, prompt_as_path=True).path(empty, 0)) == "samples/_0.mp4"


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"reference_path": ["a.png", "None", "None"]}, "reference_path .*--reference-path.*scripts/inference-long.py"),
        ({"mask_strategy": ["0"] * 3}, "mask_strategy .*scripts/inference-long.py"),
        ({"loop": 2}, "loop 2 .--loop.: .*scripts/inference-long.py"),
        ({"condition_frame_length": 1}, "--condition-frame-length.*scripts/inference-long.py"),
        ({"prompt": ['A dog.{"reference_path": "a.png"}']}, "names references: .*scripts/inference-long.py"),
        ({"prompt": ["|0|a dog|2|a cat"]}, "texts for several clips: .*scripts/inference-long.py"),
        ({"prompt": ["\ud800"]}, "half of a surrogate pair"),
        ({"prompt": 5}, "prompt 5: should be a list of texts"),
        ({"scheduler": dict(type="dpm-solver", cfg_channel=3)}, "dpm-solver has no field 'cfg_channel'"),
        ({"scheduler": dict(type="iddpm", cfg_channel=0)}, "cfg_channel 0: should be a number of channels"),
        ({"vae": dict(type="VideoAutoencoderKL", micro_batchsize=3)}, "did you mean micro_batch_size"),
        ({"seed": -1}, "seed '-1': should be a whole number from 0 to 4294967295"),
        ({"seed": 2**32}, "seed '4294967296'"),
        ({"seed": True}, "seed 'True'"),
        ({"start_index": "1"}, "start_index '1': should be a whole number"),
    ],
)
def test_what_inference_refuses(changes, words, folder, tmp_path):
    """Before it loads a model or makes a folder."""
    fields = {"text_encoder": dict(type="t5", from_pretrained="/nowhere"), **changes}
    with pytest.raises(ValueError, match=words):
        make(inference_config(folder, tmp_path / "video.py", **fields))
    assert not (tmp_path / "samples").exists()


def test_parts_of_a_list_keep_their_references(folder, tmp_path):
    """--start-index and --end-index cut the lists of a config, and flags that have an entry for each prompt."""
    config = inference_config(
        folder, tmp_path / "long.py", reference_path=["a.png", "b.png", "None"], mask_strategy=["0", "0,0,1", "None"]
    )

    def part(*flags) -> tuple:
        parsed = parse_configs(False, [str(config), *flags])
        return parsed.prompt, parsed.reference_path, parsed.mask_strategy

    assert part("--start-index", "-2", "--end-index", "2") == (["A dog."], ["b.png"], ["0,0,1"])
    assert part("--start-index", "1", "--reference-path", "x", "y", "z")[1] == ["y", "z"]
    assert part("--start-index", "1", "--reference-path", "y", "z")[1] == ["y", "z"]  # of the chosen ones alone
    inference_config(folder, config, reference_path=["a.png", "b.png"], mask_strategy=None, start_index=-2)
    with pytest.raises(ValueError, match="2 prompts, 1 entries of reference_path"):
        make(config, long=True)


def test_what_has_no_effect_is_said():
    job = Job(**JOB, loop=2, condition_frame_length=1)
    requests = plan_requests({"prompt": ["|0|a|1|b|2|c"], "mask_strategy": ["1;3"]}, job, long=True)
    assert list(without_effect(job, requests)) == [
        "prompt 0 has a text from clip 2 on, but loop is 2, counted from 0",
        "prompt 0 has a mask strategy for clip 3, but loop is 2, counted from 0",
    ]
    assert list(without_effect(Job(**JOB, condition_frame_length=1), [])) == [
        "condition_frame_length 1 has no effect: loop is 1"
    ]
    with pytest.raises(ValueError, match="has neither reference_path nor mask_strategy"):
        plan_requests({"prompt": ['a {"refrence_path": "a.png"}']}, job, long=True)


def test_a_mask_strategy_without_references(folder, tmp_path):
    with pytest.raises(ValueError, match="names reference 0 for clip 0, .* reference_path has 0"):
        make(inference_config(folder, tmp_path / "long.py", mask_strategy=["0"] * 3), long=True)


def test_fields_of_parts_at_the_top_of_a_config(folder, tmp_path, capsys):
    parse_configs(False, [str(inference_config(folder, tmp_path / "a.py", cfg_scale=7.0, num_sampling_steps=9))])
    notes = capsys.readouterr().err
    assert "num_sampling_steps = 9 has no effect" in notes and "scheduler.num_sampling_steps" in notes
    assert "cfg_scale" not in notes  # it has the value of the field that is read


def test_one_run_per_folder(folder, tmp_path):
    with exclusive_folder(tmp_path / "samples"), pytest.raises(ValueError, match="another run writes to this folder"):
        make(inference_config(folder, tmp_path / "video.py", text_encoder=dict(type="t5", from_pretrained="/nowhere")))


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"plugin": "zero9"}, "plugin 'zero9' is not one of"),
        ({"bucket_config": ...}, "needs bucket_config"),
        ({"load": "/no/such"}, "load /no/such: no such folder"),
        ({"lr": ...}, "the field lr is missing"),
        ({"scheduler": dict(type="dpm-solver")}, "'dpm-solver' does not go with the model"),
        ({"wandb": True}, "needs the package wandb"),
        ({"mask_ratios": {"identity": 0.2, "image_hed": 0.8}}, "image_hed"),
        ({"sp_size": 2}, "sp_size 2 does not divide 1 processes"),
        ({"seed": 2**32}, "seed '4294967296': should be"),
        ({"gradient_accumulation_steps": 4}, "gradient_accumulation_steps 4 has no effect on the training of STDiT2"),
        ({"validate": True}, "validate True has no effect"),
        ({"vae": dict(type="VideoAutoencoderKL", typo=1)}, "field 'typo'"),
    ],
)
def test_mistakes_in_training_configs(changes, words, folder, tmp_path):
    with pytest.raises((ValueError, OSError), match=words):
        train(training_config(folder, tmp_path / "train.py", **changes))


def test_folders_of_other_models_are_refused(tmp_path):
    """Before anything that a config names is loaded."""
    for name, class_name in (("vae", "CausalVAEModel"), ("model", "LatteT2V")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"_class_name": class_name}))
    config = {
        "model": {"type": "OpenSoraT2V_v1_3-2B/122"},
        "text_encoder": {"type": "mt5"},
        "vae": {"type": "WFVAEModel_D8_4x8x8", "from_pretrained": str(tmp_path / "vae")},
    }
    with pytest.raises(
        ValueError, match="vae: holds a CausalVAEModel .*; from_pretrained of WFVAEModel_D8_4x8x8 needs a "
    ):
        check_folders(config)
    config["model"]["from_pretrained"] = str(tmp_path / "model")
    with pytest.raises(
        ValueError, match="model: holds a LatteT2V .*; from_pretrained of OpenSoraT2V_v1_3-2B/122 needs an"
    ):
        check_folders(config)
