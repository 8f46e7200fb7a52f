"""Prompt syntax, mask strategies, references and the loop of long videos, with the published scripts' golden cases."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest
from golden_cases import case, case_names, given, load_case, relative_difference
from made_clips import moving_square
from mindspore import Tensor, ops
from toy_vae import GoldenNoise, ToyVAE

from opensora.datasets.media import save_image, write_video
from opensora.pipelines.long_video import VideoPrompt, make_long_video
from opensora.pipelines.mask_strategy import check_strategy, parse_strategy, place_references
from opensora.pipelines.prompt_syntax import loop_texts, split_overrides
from opensora.pipelines.references import find_reference, read_reference, split_paths
from opensora.pipelines.stdit import ClipSize, FrameNoise, STDiTPipeline
from opensora.schedulers.iddpm import IDDPM
from opensora.utils.download import fetch

FILE = "opensora_cases.json"


@pytest.mark.parametrize("row", case("prompt_parsing", FILE)["cases"], ids=lambda row: row["prompt"][:20])
def test_prompts_match_golden(row):
    text, overrides = split_overrides(row["prompt"])
    if "ok" in row["extract"]:  # else the published script fails
        assert [[text], [overrides]] == row["extract"]["ok"]
        for loop, expected in row["loops"].items():
            if "ok" in expected:
                assert loop_texts(text, int(loop)) == expected["ok"]


def test_prompt_syntax_edge_cases():
    assert split_overrides("hello [world] {now}") == ("hello [world] {now}", {})
    assert split_overrides('a {b} {"mask_strategy": null, "other": {"c": 1}} ') == ("a {b} ", {"mask_strategy": None})
    assert loop_texts("|0|a jeep|2|a car|9|a bus", 1) == ["a jeep"]
    assert loop_texts("|0|one|4|two", 6) == ["one"] * 4 + ["two"] * 2
    assert split_overrides('a {"reference_path": ["b", "c"]}') == ("a ", {"reference_path": "b;c"})
    for prompt, words in (
        ("a {'mask_strategy': '0'}", "invalid JSON after the text"),
        ('a {"reference_path": 3}', "3 should be a string"),
    ):
        with pytest.raises(ValueError, match=words):
            split_overrides(prompt)
    with pytest.raises(ValueError, match="should increase from 0, not be 0, 2, 1"):
        loop_texts("|0|a|2|b|1|c", 4)


MASKS = case("mask_strategy", FILE)


@pytest.mark.parametrize("number", range(len(MASKS["strings"])), ids=lambda number: MASKS["strings"][number]["string"])
def test_mask_strategies_match_golden(number):
    row = MASKS["strings"][number]
    if not row["string"]:
        assert parse_strategy(row["string"]) == []  # the published parser fails
        return
    if "error" in row["parsed"]:
        with pytest.raises(ValueError, match="one to six numbers"):
            parse_strategy(row["string"])
        return
    groups = parse_strategy(row["string"])
    assert [list(group) for group in groups] == row["parsed"]["ok"]
    z, *references = (given("mask_strategy", name, MASKS["inputs"][name]["shape"]) for name in ("z", "ref0", "ref1"))
    golden = load_case("mask_strategy")
    for clip, result in row["apply"].items():
        if result == "ok":
            latents, mask = place_references(z, [references], [groups], int(clip))
            assert np.array_equal(latents, golden[f"z_{number}_{clip}"])
            assert np.array_equal(mask, golden[f"mask_{number}_{clip}"])


def test_mask_strategy_edge_cases():
    """Groups are truncated to the available frames; an image fills its group; frames beyond the end are rejected."""
    z = np.zeros((1, 1, 6, 1, 1), np.float32)
    long, image = np.arange(1, 10.0).reshape(1, 9, 1, 1), np.full((1, 1, 1, 1), 5.0)

    def placed(text: str) -> list:
        latents, mask = place_references(z, [[long, image]], [parse_strategy(text)], 0)
        assert ((mask == 1) == (latents[:, 0, :, 0, 0] == 0)).all()
        return latents.ravel().tolist()

    assert placed("0,0,0,0,32,0.4") == [1, 2, 3, 4, 5, 6]
    assert placed("0,0,7,1,5") == [0, 8, 9, 0, 0, 0]
    assert placed("0,1,0,-2,4") == [0, 0, 0, 0, 5, 5]
    with pytest.raises(ValueError, match="group 0,1,2,0,1,0 uses frame 2 of a reference that has 1"):
        placed("0,1,2")
    with pytest.raises(ValueError, match="uses frame 6 of a clip that has 6"):
        placed("0,0,0,6")
    assert parse_strategy("None") == parse_strategy(None) == parse_strategy(" ") == []
    with pytest.raises(ValueError, match="edit rate between 0 and 1"):
        parse_strategy("0,0,0,0,1,2")
    groups = parse_strategy("0,0;2,3")
    check_strategy(groups, references=2, loop=3)
    check_strategy(groups, references=1, loop=1)
    with pytest.raises(ValueError, match="uses reference 3 for clip 2, counted from 0, but reference_path has 1"):
        check_strategy(groups, references=1, loop=3)


class ToyModel:
    """The model of the golden cases: a closed formula of x and the timestep, shifted by the text."""

    def __init__(self, name: str, target_shape: tuple, text: np.ndarray):
        self.target, self.null = Tensor(given(name, "target", (1, *target_shape))), text

    def null_text(self, n: int) -> Tensor:
        return Tensor(np.tile(self.null[None, None], (n, 1, 1, 1)))

    def __call__(self, x, timestep, y, x_mask=None, **numbers):
        frames = timestep.reshape(-1, 1, 1, 1, 1)
        if x_mask is not None:
            frames = ops.where(x_mask.reshape(x.shape[0], 1, -1, 1, 1), frames, ops.zeros_like(frames))
        u = frames / 1000
        a = ops.exp(-0.1 * u - 9.95 * u * u)
        eps = ops.sqrt(1 - a) * (x - ops.sqrt(a) * self.target) / (1 - 0.75 * a) + 0.05 * ops.tanh(x)
        eps = eps + 0.1 * y.reshape(y.shape[0], -1).mean(1).reshape(-1, 1, 1, 1, 1)
        return ops.cat((eps, ops.sin(x + frames / 200)), 1)


class RecordingPipeline(STDiTPipeline):
    def __init__(self, *parts):
        super().__init__(*parts)
        self.masks = []

    def sample(self, text, size, latents, mask=None, noise=None, progress=False):
        """The samplers take any model; the pipeline's own loop needs what STDiT2 computes beforehand."""
        self.masks.append(mask)
        inputs = {**text, **size.conditioning(len(latents))}
        return self.scheduler.sample(self.transformer, latents, inputs, mask, noise, progress)


def golden_prompt(
    name: str, pipeline: STDiTPipeline, prompt: str, path: str, strategy: str, config: dict
) -> VideoPrompt:
    text, overrides = split_overrides(prompt)
    path, strategy = overrides.get("reference_path", path), overrides.get("mask_strategy", strategy)
    references = []
    for file in split_paths(path):
        frames = int(file.rsplit("-", 1)[1].split(".")[0])
        pixels = np.clip(given(name, f"ref:{file}", (3, frames, *config["image_size"])), -3, 3) / 3
        references.append(pipeline.encode(pixels[None])[0])
    return VideoPrompt(loop_texts(text, config["loop"]), references, parse_strategy(strategy))


@pytest.mark.parametrize("name", case_names("long_", FILE))
def test_long_videos_match_golden(name):
    golden, expected = case(name, FILE), load_case(name)
    config = golden["config"]
    frames, (height, width) = config["num_frames"], config["image_size"]

    def text_encoder(texts):
        states = np.stack([given(name, f"y:{text}", (1, 3, 5))[0] for text in texts])
        return SimpleNamespace(states=states, mask=np.ones((len(texts), 3), np.int32))

    model = ToyModel(name, (4, frames, height // 8, width // 8), given(name, "y_null", (3, 5)))
    scheduler = IDDPM(
        num_sampling_steps=config["num_sampling_steps"],
        cfg_scale=config["cfg_scale"],
        cfg_channel=config["cfg_channel"],
    )
    pipeline = RecordingPipeline(text_encoder, model, ToyVAE(), scheduler)
    count = len(config["prompt"])
    prompts = [
        golden_prompt(name, pipeline, *row, config)
        for row in zip(
            config["prompt"], config["reference_path"] or [None] * count, config["mask_strategy"] or [None] * count
        )
    ]
    noise, saved = GoldenNoise(name), []
    size = ClipSize(frames, height, width, config["fps"])
    for start in range(0, count, config["batch_size"]):
        batch = prompts[start : start + config["batch_size"]]
        overlap = config["condition_frame_length"]
        videos = [
            np.concatenate(list(make_long_video(pipeline, batch, size, noise, overlap)), 2)
            for _ in range(config["num_sample"])
        ]
        saved += [video[number] for number in range(len(batch)) for video in videos]
    assert len(saved) == len(golden["saved"])
    for video, entry in zip(saved, golden["saved"]):
        assert video.shape[1] == entry["frames"]
        assert relative_difference(video[:, :, ::8, ::8], expected[entry["tensor"]]) < 1e-4, entry["file"]
    assert len(pipeline.masks) == sum(key.startswith("mask") for key in expected)
    for number, mask in enumerate(pipeline.masks):
        assert np.array_equal(mask, expected[f"mask{number}"])
    assert noise.noise_draws + 1 == golden["noise_draws"] and noise.latents_draws + 1 == golden["z_draws"]


def test_frame_noise_batches_frames():
    """The autoencoder gets the frames of (n, C, T, h, w) noise in the order in which it encodes them."""
    noise = np.arange(2 * 1 * 3 * 2 * 2.0).reshape(2, 1, 3, 2, 2)
    whole, pieces = FrameNoise(noise, None)(0), FrameNoise(noise, 4)
    assert np.array_equal(whole, noise.reshape(6, 1, 2, 2))
    assert np.array_equal(np.concatenate([pieces(0), pieces(1)]), whole) and len(pieces(0)) == 4


class Server(BaseHTTPRequestHandler):
    """Serves an image as /NAME.png; /missing/ is not found, and /short/ sends a truncated body."""

    image = b""
    requests: list = []

    def do_GET(self):
        self.requests.append(self.path)
        if "missing" in self.path:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.image) + 1000 * ("short" in self.path)))
        self.end_headers()
        self.wfile.write(self.image)
        if "short" in self.path:
            self.wfile.flush()
            self.connection.close()

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(tmp_path):
    """The address of a local web server."""
    save_image(tmp_path / "image.png", moving_square(1, 40, 64, (250, 10, 10))[0])
    Server.image, Server.requests = (tmp_path / "image.png").read_bytes(), []
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_references_are_downloaded_once(server, tmp_path):
    url, cache = f"{server}/a%20image.png?size=3", tmp_path / "cache"
    path = find_reference(url, cache, allow_local=True)
    assert path.parent == cache and path.name.endswith("_a_image.png") and path.read_bytes() == Server.image
    assert find_reference(url, cache, allow_local=True) == path and len(Server.requests) == 1
    assert find_reference(f"{server}/other/a%20image.png", cache, allow_local=True) != path
    (pixels,) = read_reference(path, 32, 32)
    assert pixels.shape == (3, 1, 32, 32) and pixels.dtype == np.float32 and np.abs(pixels).max() <= 1
    for address, words in (
        (f"{server}/missing/a.png", "cannot be fetched .HTTP 404"),
        (f"{server}/short/a.png", "cannot be fetched"),
        ("http://127.0.0.1:9/a.png", "cannot be fetched"),
    ):
        with pytest.raises(OSError, match=words):
            find_reference(address, cache, allow_local=True)
    with pytest.raises(OSError, match="40 are the limit"):
        fetch(f"{server}/large.png", cache, most_bytes=40, allow_local=True)
    with pytest.raises(OSError, match="takes too long"):
        fetch(f"{server}/slow.png", cache, seconds=-1, allow_local=True)
    with pytest.raises(ValueError, match="ends with the name of a file"):
        find_reference(f"{server}/", cache)
    assert len([file for file in cache.iterdir() if file.name != ".lock"]) == 2, "only complete files are kept"


def test_references_are_read_from_files(tmp_path):
    with write_video(tmp_path / "clip.mp4", 8) as write:
        write(moving_square(20, 32, 64, (10, 200, 10)))
    chunks = list(read_reference(find_reference(str(tmp_path / "clip.mp4"), tmp_path), 32, 32))
    assert len(chunks) == 2 and np.concatenate(chunks, 1).shape == (3, 20, 32, 32)
    assert split_paths("a.png; b.mp4") == ["a.png", "b.mp4"] and split_paths("None") == split_paths("") == []
    with pytest.raises(FileNotFoundError, match="reference gone.png: no such file"):
        find_reference("gone.png", tmp_path)
    with pytest.raises(ValueError, match="neither that of an image"):
        find_reference("gone.txt", tmp_path)
