"""scripts/inference.py and inference-long.py with tiny random models."""

from __future__ import annotations

import json
import weakref
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from raw_frames import max_level_difference, recording_frames
from toy_vae import GoldenNoise, ToyVAE
from workflow_configs import inference_config, run_inference, write_config

from opensora.cli.config_files import parse_configs
from opensora.datasets.media import VideoReader, read_image
from opensora.pipelines.long_video import VideoPrompt, make_long_video
from opensora.pipelines.stdit import ClipSize
from opensora.sample import config_inference
from opensora.sample.inference_options import file_name
from opensora.utils.folder_lock import exclusive_folder


@pytest.fixture
def recorded_frames(monkeypatch) -> None:
    """Records the frames that `run_inference` writes, before compression."""
    monkeypatch.setattr(config_inference, "write_video", recording_frames(config_inference.write_video))


def frames_of(path: Path) -> np.ndarray:
    with VideoReader(path) as reader:
        return reader.read(range(len(reader)))


def test_batching_does_not_change_the_videos(folder, run, tmp_path, recorded_frames):
    """Three prompts in batches of two; a subset gives the same videos under the same names."""
    config = inference_config(folder, tmp_path / "video.py")
    finished = run("tests/helpers/raw_frames.py", "scripts/inference.py", config)
    assert finished.returncode == 0, finished.stderr
    assert "image_size (36, 50) is cropped to (32, 48)" in finished.stderr
    videos = sorted((tmp_path / "samples").glob("*.mp4"))
    assert [path.name for path in videos] == ["sample_0.mp4", "sample_1.mp4", "sample_2.mp4"]
    with VideoReader(videos[0]) as reader:
        assert (len(reader), reader.height, reader.width, reader.fps) == (4, 32, 48, 8)
    assert not np.array_equal(frames_of(videos[0]), frames_of(videos[1]))
    run_inference(
        config, "--start-index", "-2", "--batch-size", "1", "--save-dir", tmp_path / "subset", "--num-sample", "2"
    )
    assert sorted(path.name for path in (tmp_path / "subset").glob("*.mp4")) == [
        "sample_1-0.mp4",
        "sample_1-1.mp4",
        "sample_2-0.mp4",
        "sample_2-1.mp4",
    ]
    assert max_level_difference(tmp_path / "subset/sample_2-0.mp4", videos[2]) <= 1
    assert not np.array_equal(frames_of(tmp_path / "subset/sample_2-1.mp4"), frames_of(videos[2]))


def test_images_are_named_by_their_prompts(folder, capsys, tmp_path):
    """Existing images are kept."""
    config = inference_config(
        folder,
        tmp_path / "image.py",
        num_frames=1,
        prompt=["a/b", "c"],
        prompt_as_path=True,
        scheduler=dict(type="dpm-solver", num_sampling_steps=2, cfg_scale=4.0),
    )
    run_inference(config)
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == [f"{file_name('a/b')}.png", "c.png"]
    assert read_image(tmp_path / "samples/c.png").shape == (32, 48, 3)
    (tmp_path / "samples/c.png").unlink()
    capsys.readouterr()
    run_inference(config)
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [f"saved {tmp_path}/samples/c.png"] and "has no effect" not in printed.err
    (tmp_path / "samples/c.png").unlink()
    run_inference(config, "--prompt", " ".join("abcdefghijklmnopqrstuvwxyz"))  # of 24 tokens at most
    assert "is truncated to 24;" in capsys.readouterr().err


def test_long_video_is_conditioned_on_an_image(folder, run, tmp_path):
    """Three clips of four frames with one frame of overlap; the first starts with the image."""
    prompt = json.dumps({"reference_path": str(folder / "image.png"), "mask_strategy": "0"})
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
        flags = f"--reference-path None {folder}/image.png --prompt x --mask-strategy 0".split()
        run_inference(config, *flags, long=True)


class ClipCounter:
    """A pipeline that counts the clips still in memory when the next one is decoded."""

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


def test_long_video_keeps_one_clip_in_memory():
    pipeline, size = ClipCounter(), ClipSize(6, 16, 16, 24)
    chunks = make_long_video(pipeline, [VideoPrompt(["a"] * 5)], size, GoldenNoise("memory"), 2)
    levels = map(config_inference.to_frames, chunks)
    assert [next(levels).shape[1] for _ in range(5)] == [6, 4, 4, 4, 4]
    assert pipeline.counts == [0] * 5


def test_plan_config_matches_sample_command(folder, run, tmp_path, recorded_frames):
    """Configs of Open-Sora-Plan give the results of sample.py."""
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
    run_inference(config)
    sampled = run(
        *f"tests/helpers/raw_frames.py opensora/sample/sample.py --model_path {release}/transformer".split(),
        *f"--ae_path {release}/vae --text_encoder_name_1 {release}/text --num_frames 5 --height 32".split(),
        *f"--width 64 --num_sampling_steps 2 --max_sequence_length 64 --save_img_path {tmp_path}/sampled".split(),
        *"--device CPU --rescale_betas_zero_snr --prediction_type v_prediction --seed 7".split(),
        *("--text_prompt", "A boat."),
    )
    assert sampled.returncode == 0, sampled.stderr
    (video,) = (tmp_path / "sampled").glob("*.mp4")
    assert max_level_difference(tmp_path / "samples/sample_0.mp4", video) <= 1
    with pytest.raises(ValueError, match="needs a model with conditioning frames: STDiT2-XL/2"):
        run_inference(config, long=True)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"reference_path": ["a.png", "None", "None"]}, "reference_path .*--reference-path.*scripts/inference-long.py"),
        ({"mask_strategy": ["0"] * 3}, "mask_strategy .*scripts/inference-long.py"),
        ({"loop": 2}, "loop 2 .--loop.: .*scripts/inference-long.py"),
        ({"condition_frame_length": 1}, "--condition-frame-length.*scripts/inference-long.py"),
        ({"prompt": ['A dog.{"reference_path": "a.png"}']}, "has references: .*scripts/inference-long.py"),
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
def test_invalid_inference_configs_are_rejected(changes, words, folder, tmp_path):
    """Before a model is loaded or a folder created."""
    fields = {"text_encoder": dict(type="t5", from_pretrained="/nowhere"), **changes}
    with pytest.raises(ValueError, match=words):
        run_inference(inference_config(folder, tmp_path / "video.py", **fields))
    assert not (tmp_path / "samples").exists()


def test_selected_prompts_keep_their_references(folder, tmp_path):
    """--start-index and --end-index slice the lists of a config, and flags with one entry per prompt."""
    config = inference_config(
        folder, tmp_path / "long.py", reference_path=["a.png", "b.png", "None"], mask_strategy=["0", "0,0,1", "None"]
    )

    def select(*flags) -> tuple:
        parsed = parse_configs(False, [str(config), *flags])
        return parsed.prompt, parsed.reference_path, parsed.mask_strategy

    assert select("--start-index", "-2", "--end-index", "2") == (["A dog."], ["b.png"], ["0,0,1"])
    assert select("--start-index", "1", "--reference-path", "x", "y", "z")[1] == ["y", "z"]
    assert select("--start-index", "1", "--reference-path", "y", "z")[1] == ["y", "z"]  # one entry per selected prompt
    inference_config(folder, config, reference_path=["a.png", "b.png"], mask_strategy=None, start_index=-2)
    with pytest.raises(ValueError, match="2 prompts, 1 entries of reference_path"):
        run_inference(config, long=True)


def test_mask_strategy_without_references_is_rejected(folder, tmp_path):
    with pytest.raises(ValueError, match="uses reference 0 for clip 0, .* reference_path has 0"):
        run_inference(inference_config(folder, tmp_path / "long.py", mask_strategy=["0"] * 3), long=True)


def test_component_fields_at_the_top_level_are_reported(folder, tmp_path, capsys):
    parse_configs(False, [str(inference_config(folder, tmp_path / "a.py", cfg_scale=7.0, num_sampling_steps=9))])
    notes = capsys.readouterr().err
    assert "num_sampling_steps = 9 has no effect" in notes and "scheduler.num_sampling_steps" in notes
    assert "cfg_scale" not in notes  # it equals the value in the scheduler


def test_folder_in_use_is_rejected(folder, tmp_path):
    with exclusive_folder(tmp_path / "samples"), pytest.raises(ValueError, match="another run writes to this folder"):
        run_inference(
            inference_config(folder, tmp_path / "video.py", text_encoder=dict(type="t5", from_pretrained="/nowhere"))
        )
