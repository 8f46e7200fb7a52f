"""The HTTP interface of the studio, against a running service with stand-in workers."""

from __future__ import annotations

import json
import shlex
import time

import httpx
import pytest
from processes import ROOT
from studio_runs import studio

from opensora.datasets.media import VideoReader
from opensora.serve.responses import Estimate, ServiceDescription, VideoJob, VideoList

IMAGE = ROOT / "examples/demo_model/picture.png"


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with studio(tmp_path_factory.mktemp("studio") / "data", "--rate_limit", "0", "--max_queue", "5") as found:
        yield found


@pytest.fixture(scope="module")
def finished(running):
    return running.wait_for(running.create(seed=7)["id"])


def error(answer: httpx.Response) -> dict:
    assert set(answer.json()) == {"error"} and set(answer.json()["error"]) == {"code", "message", "param"}
    return answer.json()["error"]


def test_a_prompt_becomes_a_video(running):
    answer = running.http.post("/v1/videos", json={"prompt": " a red circle ", "steps": 3})
    job = answer.json()
    assert answer.status_code == 201 and answer.headers["location"] == f"/v1/videos/{job['id']}"
    assert job["status"] == "queued" and job["prompt"] == "a red circle" and job["position"] >= 1
    done = running.wait_for(job["id"])
    assert done["status"] == "completed" and done["progress"] == 100 and done["attempts"] == 1
    assert done["completed_at"] >= done["started_at"] >= done["created_at"]
    content = running.http.get(f"/v1/videos/{job['id']}/content")
    assert content.status_code == 200 and content.headers["content-type"] == "video/mp4"
    path = running.data / "copy.mp4"
    path.write_bytes(content.content)
    with VideoReader(path) as reader:
        assert len(reader) == 5


def test_answers_are_those_of_the_description(running, finished):
    VideoJob.model_validate(finished)
    VideoList.model_validate(running.http.get("/v1/videos").json())
    ServiceDescription.model_validate(running.http.get("/v1/service").json())
    document = running.http.get("/openapi.json").json()
    assert {"/v1/videos", "/v1/videos/{video_id}/content", "/v1/files", "/v1/estimate"} <= set(document["paths"])
    create = document["paths"]["/v1/videos"]["post"]["responses"]
    assert {"201", "401", "422", "429", "507"} <= set(create)
    assert running.http.get("/docs").status_code == 404


def test_content_has_ranges_variants_and_names(running, finished):
    address = f"/v1/videos/{finished['id']}/content"
    whole = running.http.get(address).content
    part = running.http.get(address, headers={"Range": "bytes=10-19"})
    assert part.status_code == 206 and part.content == whole[10:20]
    assert part.headers["content-range"] == f"bytes 10-19/{len(whole)}"
    assert running.http.get(address, headers={"Range": f"bytes={len(whole)}-"}).status_code == 416
    head = running.http.head(address)
    assert head.headers["content-length"] == str(len(whole)) and not head.content
    assert running.http.get(address, params={"variant": "thumbnail"}).content[:2] == b"\xff\xd8"
    assert running.http.get(address, params={"variant": "metadata"}).json()["prompt"] == "a red circle"
    download = running.http.get(address, params={"download": 1})
    assert download.headers["content-disposition"] == f'attachment; filename="{finished["id"]}.mp4"'
    assert error(running.http.get(address, params={"variant": "../x"}))["param"] == "variant"


def test_an_image_is_a_video_of_one_frame(running):
    job = running.wait_for(running.create(num_frames=1)["id"])
    content = running.http.get(f"/v1/videos/{job['id']}/content")
    assert job["kind"] == "image" and content.headers["content-type"] == "image/jpeg"


def test_seconds_and_seed_are_resolved(running):
    job = running.create(seconds=1.0, fps=8)
    assert job["num_frames"] == 9 and job["seconds"] == 1.125 and 0 <= job["seed"] < 2**32


@pytest.mark.parametrize(
    "fields, param",
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": "  "}, "prompt"),
        ({"prompt": "x" * 2001}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": "a\0b"}, "prompt"),
        ({"size": "64"}, "size"),
        ({"size": "63x64"}, "size"),
        ({"size": "6400x6400"}, "size"),
        ({"num_frames": 4}, "num_frames"),
        ({"num_frames": 1001}, "num_frames"),
        ({"num_frames": 5, "seconds": 1}, "seconds"),
        ({"steps": 0}, "steps"),
        ({"steps": 10**6}, "steps"),
        ({"steps": True}, "steps"),
        ({"sampler": "nonsense"}, "sampler"),
        ({"cache": "nonsense"}, "cache"),
        ({"model": "nonsense"}, "model"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**32}, "seed"),
        ({"priority": 11}, "priority"),
        ({"loras": [{"name": "../../etc/passwd"}]}, "loras"),
        ({"remixed_from": "video_" + "0" * 32}, "remixed_from"),
        ({"remixed_from": "../x"}, "remixed_from"),
        ({"frames": [{"file": "../x", "frame": 0}]}, "frames"),
        ({"frames": [{"frame": 0}]}, "frames"),
        ({"frames": [{"file": "file_" + "0" * 32, "frame": 99}]}, "frames"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_wrong_fields_are_named(running, fields, param):
    answer = running.http.post("/v1/videos", json={"prompt": "a prompt", **fields})
    assert answer.status_code == 422
    assert error(answer)["param"] == param and len(error(answer)["message"].splitlines()) == 1


@pytest.mark.parametrize("body, status", [(b"{", 400), (b"[]", 422), (b'{"prompt": NaN}', 422), (b"[" * 100000, 400)])
def test_other_bodies_are_refused(running, body, status):
    answer = running.http.post("/v1/videos", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status and error(answer)


def test_unpaired_surrogates_are_refused(running):
    body = rb'{"prompt": "\ud800"}'
    answer = running.http.post("/v1/videos", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422 and error(answer)["param"] == "prompt"


def test_unknown_ids_and_routes_are_not_found(running):
    for path in ("videos/video_" + "0" * 32, "videos/x", "videos/%2e%2e%2fqueue.sqlite", "files/x/content", "nothing"):
        answer = running.http.get(f"/v1/{path}")
        assert answer.status_code == 404 and error(answer)["code"] == "not_found"
    assert error(running.http.put("/v1/videos", json={}))["code"] == "method_not_allowed"


def test_lists_search_and_page(running):
    jobs = [running.create(f"page number {number}", num_frames=1) for number in range(3)]
    for job in jobs:
        running.wait_for(job["id"])
    first = running.http.get("/v1/videos", params={"limit": 2, "query": "PAGE number"}).json()
    assert [job["id"] for job in first["data"]] == [jobs[2]["id"], jobs[1]["id"]] and first["has_more"]
    parameters = {"limit": 2, "query": "page number", "after": first["data"][-1]["id"]}
    second = running.http.get("/v1/videos", params=parameters).json()
    assert [job["id"] for job in second["data"]] == [jobs[0]["id"]] and not second["has_more"]
    assert not running.http.get("/v1/videos", params={"status": "failed", "query": "page number"}).json()["data"]
    assert error(running.http.get("/v1/videos", params={"limit": 0}))["param"] == "limit"


def test_full_queue_cancel_and_delete(running):
    slow = running.create("slow", steps=100)
    running.wait_for(slow["id"], "in_progress")
    waiting = [running.create(f"waits {number}", priority=number) for number in range(5)]
    refused = running.http.post("/v1/videos", json={"prompt": "one too many"})
    assert refused.status_code == 429 and error(refused)["code"] == "queue_full" and refused.headers["retry-after"]
    assert [running.job(job["id"])["position"] for job in waiting] == [5, 4, 3, 2, 1]
    assert error(running.http.get(f"/v1/videos/{slow['id']}/content"))["code"] == "not_completed"
    for video in (slow, waiting[0]):
        answer = running.http.delete(f"/v1/videos/{video['id']}")
        assert answer.status_code == 409 and error(answer)["code"] == "not_finished"
    for video in (waiting[0], slow):
        assert running.http.post(f"/v1/videos/{video['id']}/cancel").json()["status"] == "cancelled"
    for job in waiting[1:]:
        assert running.wait_for(job["id"])["status"] == "completed"
    deadline = time.monotonic() + 10
    while running.http.delete(f"/v1/videos/{slow['id']}").status_code == 409:
        assert time.monotonic() < deadline
    assert running.http.get(f"/v1/videos/{slow['id']}").status_code == 404
    assert not (running.data / "videos" / slow["id"]).exists()
    assert running.http.post(f"/v1/videos/{waiting[1]['id']}/cancel").json()["status"] == "completed"


def test_a_failed_video_says_why(running):
    job = running.wait_for(running.create("refuse this")["id"])
    assert job["status"] == "failed" and job["error"] == {"code": "invalid", "message": "this prompt is refused"}


def test_a_crashing_worker_fails_its_job_after_three_times(running):
    job = running.wait_for(running.create("crash")["id"])
    assert job["status"] == "failed" and job["error"]["code"] == "worker_died" and job["attempts"] == 3
    assert "the worker has crashed" in job["error"]["message"]
    assert running.wait_for(running.create("a later one")["id"])["status"] == "completed"


def test_command_makes_the_same_video(running, finished, tmp_path, monkeypatch):
    from opensora.sample.options import parse_options

    words = shlex.split(running.http.get(f"/v1/videos/{finished['id']}/command").json()["command"])
    assert words[:2] == ["opensora", "sample"]
    options, args = parse_options(words[2:])
    assert (options.num_sampling_steps, options.num_frames, options.width, options.fps) == (3, 17, 64, 8)
    assert options.text_prompt == ["a red circle"] and options.negative_prompt == "" and args.seed == 7
    assert options.rescale_betas_zero_snr and options.prediction_type == "v_prediction"


@pytest.mark.parametrize("prompt", ["/etc/passwd", "prompts.txt", "red/blue", "two\nlines", "-x"])
def test_prompts_are_no_file_names(running, prompt):
    from opensora.sample.options import parse_options
    from opensora.sample.prompt_files import read_prompts

    job = running.wait_for(running.create(prompt)["id"])
    words = shlex.split(running.http.get(f"/v1/videos/{job['id']}/command").json()["command"])
    options, _ = parse_options(words[2:])
    assert read_prompts(options.text_prompt) == [prompt]


def test_estimate_is_counted_then_measured(running):
    body = {"prompt": "a prompt", "size": "96x64", "num_frames": 5, "steps": 10}
    counted = running.http.post("/v1/estimate", json={**body, "model": "text-to-video"}).json()
    Estimate.model_validate(counted)
    assert counted["fits"] and counted["memory_bytes"] > 1e8 and counted["tokens"] == 2 * 4 * 6
    running.wait_for(running.create(**body)["id"])
    measured = running.http.post("/v1/estimate", json=body).json()
    assert measured["basis"] == "measured" and measured["seconds"] == pytest.approx(10 * 0.1 + 0.2)
    wider = running.http.post("/v1/estimate", json={**body, "size": "192x64"}).json()
    assert wider["basis"] == "measured" and wider["seconds"] > measured["seconds"]


def test_events_of_a_video_end_with_it(running):
    job = running.create(steps=20)
    with running.http.stream("GET", f"/v1/videos/{job['id']}/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        jobs = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: ")]
    assert jobs[-1]["status"] == "completed" and jobs[0]["id"] == job["id"]
    progress = [job["progress"] for job in jobs]
    assert progress == sorted(progress) and any(0 < value < 100 for value in progress)
    with running.http.stream("GET", f"/v1/videos/{job['id']}/events") as answer:
        assert "completed" in "".join(answer.iter_text())


def test_service_says_what_it_offers(running):
    service = running.http.get("/v1/service").json()
    assert [model["task"] for model in service["models"]] == ["text-to-video", "image-to-video"]
    assert service["models"][0]["defaults"]["steps"] == 50 and "64x64" in service["models"][0]["sizes"]
    assert service["workers"][0]["state"] in ("idle", "busy") and service["limits"]["max_queue"] == 5
