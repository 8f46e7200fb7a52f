"""The Python client and the node of ComfyUI against a running service."""

from __future__ import annotations

import importlib.util
import sys
import threading
import time

import numpy as np
import pytest
from processes import ROOT
from studio_runs import RunningStudio, studio

from opensora.datasets.media import VideoReader, read_image
from opensora.serve.client import Client, StudioError, VideoFailed

TOKEN = "0123456789abcdef-token"
IMAGE = ROOT / "examples/demo_model/picture.png"


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    flags = ("--token", TOKEN, "--rate_limit", "0")
    with studio(tmp_path_factory.mktemp("studio") / "data", *flags) as found:
        yield found


@pytest.fixture(scope="module")
def client(running: RunningStudio) -> Client:
    return Client(running.address, TOKEN)


def test_create_wait_download(client, tmp_path):
    states: list[dict] = []
    job = client.create("a red circle", steps=10, seed=3)
    done = client.wait(job["id"], states.append)
    assert done["status"] == "completed" and done["seed"] == 3
    assert any(0 < state["progress"] < 100 for state in states) and states[-1] == done
    with VideoReader(client.download(job["id"], tmp_path / "video.mp4")) as reader:
        assert len(reader) == 5
    assert read_image(client.download(job["id"], tmp_path / "thumbnail.jpg", "thumbnail")).shape == (64, 64, 3)
    assert "--seed 3" in client.command(job["id"]) and client.get(job["id"]) == done


def test_lists_have_all_pages(client):
    jobs = [client.create(f"one of many {number}", steps=1, num_frames=1) for number in range(60)]
    found = [job["id"] for job in client.list(query="one of many")]
    assert found == [job["id"] for job in reversed(jobs)]
    assert len(list(client.list(limit=7))) == 7
    for job in jobs:
        client.cancel(job["id"])


def test_upload_and_delete(client):
    upload = client.upload(IMAGE)
    assert upload["kind"] == "image" and upload["name"] == "picture.png"
    job = client.wait(client.create("x", steps=1)["id"])
    client.delete(job["id"])
    with pytest.raises(StudioError) as error:
        client.get(job["id"])
    assert error.value.status == 404 and error.value.code == "not_found"


def test_errors_name_code_and_field(client):
    with pytest.raises(StudioError) as error:
        client.create("x", size="63x64")
    assert (error.value.status, error.value.param) == (422, "size") and "multiple of 32" in str(error.value)
    with pytest.raises(VideoFailed, match="this prompt is refused"):
        client.wait(client.create("refuse", steps=1)["id"])
    with pytest.raises(StudioError):
        Client(client.address, "another token, which is wrong").service()


def test_estimate_and_service(client):
    assert client.service()["models"][0]["task"] == "text-to-video"
    assert client.estimate("x", steps=10)["fits"]


def test_timeout_and_cancel(client):
    job = client.create("slow", steps=100)
    with pytest.raises(TimeoutError):
        client.wait(job["id"], timeout=2)
    assert client.cancel(job["id"])["status"] == "cancelled"
    with pytest.raises(VideoFailed, match="cancelled"):
        client.wait(job["id"])


def test_waiting_survives_a_restart(tmp_path):
    data = tmp_path / "data"
    first = RunningStudio(data).wait_until_up()
    job = first.create("slow", steps=3)
    done: list[dict] = []
    waiting = threading.Thread(target=lambda: done.append(Client(first.address).wait(job["id"])))
    waiting.start()
    time.sleep(0.5)
    first.kill()
    with studio(data, port=first.port):
        waiting.join(timeout=60)
        assert done and done[0]["status"] == "completed"


def comfyui_nodes():
    spec = importlib.util.spec_from_file_location("opensora_comfyui", ROOT / "integrations/comfyui/__init__.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_node_of_comfyui(running):
    module = comfyui_nodes()
    (node_class,) = module.NODE_CLASS_MAPPINGS.values()
    inputs = node_class.INPUT_TYPES()
    assert {"prompt", "address", "steps", "seed"} <= set(inputs["required"]) and "image" in inputs["optional"]
    node = node_class()
    common = dict(address=running.address, token=TOKEN, size="64x64", num_frames=17, steps=3, guidance_scale=4.0)
    values: list[float] = []
    node.report = lambda done, total: values.append(done / total)
    frames, fps = node.pixels("a red circle", seed=1, **common)
    assert frames.shape == (5, 64, 64, 3) and frames.dtype == np.float32 and 0 <= frames.min() <= frames.max() <= 1
    assert fps == 8.0 and values[-1] == 1.0
    image = read_image(IMAGE).astype(np.float32)[None] / 255
    frames, _ = node.pixels("a red circle", seed=2**40, image=image, **common)
    assert frames.shape == (5, 64, 64, 3)
    with pytest.raises(RuntimeError, match="multiple of 32"):
        node.pixels("x", seed=1, **{**common, "size": "63x64"})
