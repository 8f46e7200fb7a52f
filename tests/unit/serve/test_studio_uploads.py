"""Uploads of images and videos, also of broken and malicious ones."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image
from processes import ROOT
from studio_runs import studio
from video_files import moving_image

from opensora.datasets.media import VideoReader, write_video

IMAGE = ROOT / "examples/demo_model/picture.png"


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    flags = ("--rate_limit", "0", "--max_upload_mb", "4", "--max_uploads", "6")
    with studio(tmp_path_factory.mktemp("studio") / "data", *flags) as found:
        yield found


def folders(running) -> list[str]:
    return sorted(path.name for path in (running.data / "files").iterdir())


def refused(running, path) -> str:
    """The message of the error; nothing of the file stays."""
    before = folders(running)
    answer = running.upload(path)
    assert answer.status_code == 422 and answer.json()["error"]["param"] == "file", answer.text
    assert folders(running) == before
    message = answer.json()["error"]["message"]
    assert str(running.data) not in message and len(message.splitlines()) == 1
    return message


def test_an_image_is_stored_as_png_without_its_metadata(running, tmp_path):
    path = tmp_path / "photo.jpg"
    exif = Image.Exif()
    exif[0x010E] = "where it was taken"
    exif[0x0112] = 6  # turned
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(path, exif=exif)
    answer = running.upload(path)
    found = answer.json()
    assert answer.status_code == 201
    assert (found["kind"], found["width"], found["height"], found["frames"]) == ("image", 20, 30, 1)
    content = running.http.get(f"/v1/files/{found['id']}/content")
    assert content.headers["content-type"] == "image/png" and b"where it was taken" not in content.content
    assert [path.name for path in (running.data / "files" / found["id"]).iterdir()] == ["image.png"]


def test_a_video_is_encoded_again(running, real_clip):
    found = running.upload(real_clip).json()
    with VideoReader(real_clip) as reader:
        assert (found["kind"], found["width"], found["height"]) == ("video", reader.width, reader.height)
        assert found["frames"] == len(reader) and found["fps"] == pytest.approx(reader.fps)
    assert running.http.get(f"/v1/files/{found['id']}/content", headers={"Range": "bytes=0-3"}).status_code == 206


def test_names_of_clients_are_only_shown(running, tmp_path):
    for name in ("../../../evil.png", "/etc/passwd", "C:\\x\\y.png", "a\nb.png", "", "x" * 500 + ".png"):
        with open(IMAGE, "rb") as file:
            answer = running.http.post(
                "/v1/files", files={"file": (name or "x", file)}, headers={"X-Requested-With": "opensora"}
            )
        assert answer.status_code == 201, answer.text
        shown = answer.json()["name"]
        assert "/" not in shown and "\\" not in shown and "\n" not in shown and len(shown) <= 100
    assert not list(running.data.parent.rglob("*evil*"))


def test_the_oldest_uploads_are_removed(running):
    ids = [running.upload(IMAGE).json()["id"] for _ in range(8)]
    assert sorted(ids[2:]) == folders(running)
    assert running.http.get(f"/v1/files/{ids[0]}/content").status_code == 404


def test_a_decompression_bomb_is_refused(running, tmp_path):
    """A PNG of a few kilobytes that announces, and would decode to, 30000 x 30000 pixels."""
    path = tmp_path / "bomb.png"

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = 30000
    rows = zlib.compress(bytes((size + 7) // 8 + 1) * size, 9)
    header = struct.pack(">IIBBBBB", size, size, 1, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
    assert path.stat().st_size < 1 << 20 and "too large" in refused(running, path)
    assert running.http.get("/healthz").status_code == 200


def test_a_video_of_many_frames_is_refused(running, tmp_path):
    path = tmp_path / "long.mp4"
    with write_video(path, 24) as write:
        for _ in range(11):
            write(np.zeros((100, 16, 16, 3), np.uint8))
    assert "1100 frames" in refused(running, path)


def test_a_truncated_video_is_refused(running, tmp_path, real_clip):
    path = tmp_path / "truncated.mp4"
    path.write_bytes(real_clip.read_bytes()[: real_clip.stat().st_size * 2 // 3])
    assert refused(running, path)


def test_a_damaged_video_is_refused(running, corrupt_clip):
    assert refused(running, corrupt_clip)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        b"GIF89a",
        b"\x89PNG\r\n\x1a\n" + bytes(100),
        b"#EXTM3U\nfile:///etc/passwd\n",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        bytes(100000),
    ],
)
def test_other_files_are_refused(running, tmp_path, content):
    path = tmp_path / "file.png"
    path.write_bytes(content)
    assert refused(running, path)


def test_forms_without_the_file_are_refused(running):
    headers = {"X-Requested-With": "opensora"}
    for form in ({"files": {"other": ("x", b"x")}}, {"data": {"file": "text"}, "files": {"other": ("x", b"x")}}):
        assert running.http.post("/v1/files", headers=headers, **form).json()["error"]["param"] == "file"
    two = [("file", ("a", b"a")), ("file", ("b", b"b"))]
    assert running.http.post("/v1/files", headers=headers, files=two).status_code == 400
    kind = {"Content-Type": "multipart/form-data", **headers}
    assert running.http.post("/v1/files", headers=kind, content=b"x").status_code == 400


def test_the_decoding_process_has_limits_of_memory_and_time(tmp_path):
    """In the process that decodes, memory beyond the limit is an error and not the machine's."""
    program = (
        "import resource; from opensora.serve import upload_process as u; u.limit_resources(1000)\n"
        "assert resource.getrlimit(resource.RLIMIT_CPU)[0] == u.CPU_SECONDS\n"
        "try:\n    bytearray(u.MEMORY)\nexcept MemoryError:\n    print('refused')\n"
        f"open({str(tmp_path / 'large')!r}, 'wb').write(bytes(100000))"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert finished.stdout == "refused\n" and finished.returncode != 0
    assert not (tmp_path / "large").exists() or (tmp_path / "large").stat().st_size <= 1000


def test_given_frames_become_conditioning_frames(running, tmp_path):
    image = running.upload(IMAGE).json()["id"]
    job = running.wait_for(running.create(frames=[{"file": image, "frame": -1}, {"file": image, "frame": 0}])["id"])
    assert job["model"] == "image-to-video" and job["status"] == "completed"
    folder = running.data / "videos" / job["id"]
    assert (folder / "frames.txt").read_text().split(",") == [
        str(folder / "given_000.png"),
        f"{folder / 'given_001.png'}\n",
    ]
    command = running.http.get(f"/v1/videos/{job['id']}/command").json()["command"]
    assert "--condition_frames 0 16" in command and "--model_type i2v" in command


def test_frames_of_an_earlier_video_and_clips_to_continue(running, tmp_path):
    first = running.wait_for(running.create()["id"])
    last = running.create(frames=[{"video": first["id"], "source_frame": -1, "frame": 0}])
    assert running.wait_for(last["id"])["frames"] == [{"video": first["id"], "source_frame": -1, "frame": 0}]
    clip = tmp_path / "clip.mp4"
    with write_video(clip, 8) as write:
        write(moving_image(12, 64, 64))
    upload = running.upload(clip).json()
    job = running.wait_for(running.create(frames=[{"file": upload["id"]}])["id"])
    given = sorted((running.data / "videos" / job["id"]).glob("given_*.png"))
    assert len(given) == 8  # the last ones of the clip, as the first half of the new video
    copy = VideoReader(running.data / "files" / upload["id"] / "video.mp4").read(range(4, 12))
    assert (np.stack([np.asarray(Image.open(path)) for path in given]) == copy).all()
    assert "--mask_type continuation" in running.http.get(f"/v1/videos/{job['id']}/command").json()["command"]
    wrong = {"prompt": "x", "frames": [{"video": first["id"], "source_frame": 99, "frame": 0}]}
    answer = running.http.post("/v1/videos", json=wrong)
    assert answer.status_code == 422 and "the video has 5 frames" in answer.json()["error"]["message"]
    assert running.http.post("/v1/videos", json={**wrong, "model": "text-to-video"}).status_code == 422
