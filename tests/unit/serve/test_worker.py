"""The worker process with the demo model."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import pytest
from PIL import Image
from processes import ROOT
from worker_socket import DEMO, SETTINGS, WorkerSocket

from opensora.cli.sample import main as sample
from opensora.datasets.media import VideoReader
from opensora.serve.job_monitor import JobMonitor
from opensora.utils.files import lock_file

NAME = "EulerAncestralDiscrete_0_gs4_s4.mp4"


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    with WorkerSocket(tmp_path_factory.mktemp("data"), (), 1, "--preview_interval", "0.01") as worker:
        yield worker


def frames(path) -> np.ndarray:
    with VideoReader(path) as reader:
        return reader.read(range(len(reader)))


def sampled(folder, *more) -> np.ndarray:
    """What opensora sample makes from the same settings."""
    flags = []
    for name, value in SETTINGS.items():
        flags += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    common = ["--save_img_path", str(folder), "--seed", "3", "--device", "CPU", "--text_prompt", "a red circle"]
    sample([*flags, *common, *map(str, more)])
    return frames(folder / NAME)


def test_result_is_that_of_sample_with_progress_and_previews(worker, tmp_path):
    folder = worker.start("text", text_prompt=["a red circle"])
    messages = worker.finish("text")
    stages = [message["stage"] for message in messages if message["type"] == "stage"]
    steps = [message for message in messages if message["type"] == "step"]
    assert stages == ["load", "encode", "denoise", "decode"] and [one["step"] for one in steps] == [1, 2, 3, 4]
    assert all(one["steps"] == 4 and one["seconds_left"] >= 0 for one in steps) and steps[-1]["seconds_left"] == 0
    done = messages[-1]
    assert done["type"] == "done" and done["model_calls"] == 4 and set(done["seconds"]) == set(stages)
    assert any(message["type"] == "preview" for message in messages)
    with Image.open(folder / "preview.webp") as preview:
        assert preview.size == (64, 64)
    assert np.array_equal(frames(folder / NAME), sampled(tmp_path, "--model_path", DEMO / "transformer"))
    assert (folder / NAME).with_suffix(".json").exists()


def test_given_images_keep_their_places(worker, tmp_path):
    image = DEMO / "picture.png"
    (worker.data / "list.txt").write_text(f"{image},{image}\n")
    given = {"model_type": "i2v", "conditional_pixel_values_path": str(worker.data / "list.txt"), "crop_for_hw": True}
    folder = worker.start("image", "inpaint", text_prompt=["a red circle"], condition_frames=[0, -1], **given)
    assert worker.finish("image")[-1]["type"] == "done"
    flags = ("--model_path", DEMO / "inpaint", "--condition_frames", 0, -1)
    more = [
        word for name, value in given.items() for word in ([f"--{name}"] if value is True else [f"--{name}", value])
    ]
    assert np.array_equal(frames(folder / NAME), sampled(tmp_path, *flags, *more))


def test_cancelled_job_ends_and_the_next_one_is_made(worker):
    folder = worker.start("long", text_prompt=["a red circle"], num_sampling_steps=500)
    worker.finish("long", until="step")
    worker.send({"type": "cancel", "id": "long"})
    assert worker.finish("long")[-1]["type"] == "cancelled" and not list(folder.glob("*.mp4"))
    worker.start("next", text_prompt=["a red circle"])
    assert worker.finish("next")[-1]["type"] == "done"


@pytest.mark.parametrize(
    "options, message",
    [
        ({"lora": ["nothing.safetensors:1"]}, "nothing.safetensors"),
        ({"model_type": "i2v", "conditional_pixel_values_path": "none.png"}, "none.png"),
        ({"num_frames": 6}, "6"),
    ],
)
def test_error_of_a_job_is_one_line_and_the_worker_goes_on(options, message, worker):
    model = "inpaint" if "model_type" in options else "transformer"
    worker.start("wrong", model, text_prompt=["a red circle"], **options)
    failed = worker.finish("wrong")[-1]
    assert failed["type"] == "failed" and message in failed["message"] and "\n" not in failed["message"]
    worker.start("right", text_prompt=["a red circle"])
    assert worker.finish("right")[-1]["type"] == "done"


def test_job_continues_after_a_kill_and_the_result_is_the_same(worker, tmp_path):
    expected = worker.start("whole", text_prompt=["a red circle"], num_sampling_steps=200, num_frames=1)
    worker.finish("whole")
    arguments = ("--preview_interval", "0", "--state_interval", "0.3")
    with WorkerSocket(tmp_path, (), 1, *arguments) as killed:
        folder = killed.start("whole", text_prompt=["a red circle"], num_sampling_steps=200, num_frames=1)
        while not (folder / "state.npz").exists():
            killed.finish("whole", until="step")
        os.killpg(killed.process.pid, signal.SIGKILL)
    first = int(JobMonitor(folder, print, lambda: False, None, 8, 0, 0, False).resume()["step"])
    with WorkerSocket(tmp_path, (), 1, *arguments) as again:
        again.start("whole", text_prompt=["a red circle"], num_sampling_steps=200, num_frames=1)
        messages = again.finish("whole")
    steps = [message["step"] for message in messages if message["type"] == "step"]
    assert steps == list(range(first + 1, 201)) and messages[-1]["model_calls"] == 200
    (one,), (other,) = (list(path.glob("*.jpg")) for path in (expected, folder))
    assert one.read_bytes() == other.read_bytes()


def test_worker_ends_with_its_connection_and_frees_its_lock(tmp_path):
    with WorkerSocket(tmp_path) as worker:
        assert lock_file(tmp_path / "worker-0.lock") is None
        worker.start("long", text_prompt=["a red circle"], num_sampling_steps=500)
        worker.finish("long", until="step")
        start = time.monotonic()
    assert worker.process.returncode == 0 and time.monotonic() - start < 5
    assert lock_file(tmp_path / "worker-0.lock") is not None and ROOT.exists()
