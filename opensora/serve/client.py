"""A client of the studio, which needs nothing but Python.

client = Client("http://127.0.0.1:7860")
job = client.create("a red circle moves right on a blue background")
job = client.wait(job["id"], on_progress=lambda job: print(job["status"], job["progress"]))
client.download(job["id"], "circle.mp4")
"""

from __future__ import annotations

import json
import mimetypes
import secrets
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Callable, Optional, Union

from opensora.utils.files import atomic_write

FINAL = ("completed", "failed", "cancelled")
TIMEOUT = 60.0  # seconds without an answer; streams of events have heartbeats
CREATE_AGAIN = 5  # times, after which a full queue or a limited rate is an error
Job = dict[str, Any]


class StudioError(Exception):
    """An error that the service answered.

    Attributes:
        status: HTTP status.
        code: such as "queue_full".
        param: the field of the request that is wrong, or None.
        retry_after: seconds until it is worth trying again, or None.
    """

    def __init__(
        self, status: int, code: str, message: str, param: Optional[str] = None, retry_after: Optional[float] = None
    ):
        super().__init__(message)
        self.status, self.code, self.param, self.retry_after = status, code, param, retry_after


class VideoFailed(Exception):
    """The video that was waited for failed or was cancelled; `job` says why."""

    def __init__(self, job: Job):
        super().__init__((job.get("error") or {}).get("message") or f"the video was {job['status']}")
        self.job = job


class Client:
    """A connection to a studio.

    Args:
        address: of the service.
        token: that the service was started with, if any.
    """

    def __init__(self, address: str = "http://127.0.0.1:7860", token: Optional[str] = None):
        self.address = address.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    def create(self, prompt: str, **fields: Any) -> Job:
        """Adds a video to the queue. `fields` are those of POST /v1/videos, such as size, seed and frames.

        Raises:
            StudioError: the request is not accepted. While the queue is full it is repeated a few times.
        """
        for left in reversed(range(CREATE_AGAIN)):
            try:
                return self._json("POST", "/v1/videos", {"prompt": prompt, **fields})
            except StudioError as error:
                if error.status != 429 or not left:
                    raise
                time.sleep(error.retry_after or 1.0)
        raise AssertionError("unreachable")

    def get(self, video_id: str) -> Job:
        return self._json("GET", f"/v1/videos/{_quoted(video_id)}")

    def list(self, limit: Optional[int] = None, query: str = "", status: Optional[str] = None) -> Iterator[Job]:
        """The videos from new to old: all, or `limit` of them, with a text in the prompt, or of a status."""
        wanted = {"query": query, **({"status": status} if status else {})}
        count = 0
        while True:
            page = self._json("GET", f"/v1/videos?{urllib.parse.urlencode(wanted)}")
            for job in page["data"]:
                if count == limit:
                    return
                yield job
                count += 1
            if not page["has_more"]:
                return
            wanted["after"] = page["data"][-1]["id"]

    def wait(
        self, video_id: str, on_progress: Optional[Callable[[Job], None]] = None, timeout: Optional[float] = None
    ) -> Job:
        """Waits until a video is completed, also while the service is restarted.

        Args:
            on_progress: called with every new state.
            timeout: seconds; None waits forever.

        Raises:
            VideoFailed: it failed or was cancelled.
            TimeoutError: it is not completed in time.
            StudioError: there is no such video.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            try:
                for job in self.events(video_id):
                    if on_progress is not None:
                        on_progress(job)
                    if job["status"] == "completed":
                        return job
                    if job["status"] in FINAL:
                        raise VideoFailed(job)
                    if deadline is not None and time.monotonic() > deadline:
                        raise TimeoutError(f"{video_id} is {job['status']} after {timeout} seconds")
            except (ConnectionError, urllib.error.URLError, TimeoutError, StudioError) as error:
                late = deadline is not None and time.monotonic() > deadline
                if late or (isinstance(error, StudioError) and error.status < 500):
                    raise
            time.sleep(0.5)  # the connection ended

    def events(self, video_id: Optional[str] = None) -> Iterator[Job]:
        """The states of a video until it has ended, or of all videos, as the service sends them."""
        path = f"/v1/videos/{_quoted(video_id)}/events" if video_id else "/v1/events"
        with self._open("GET", path) as answer:
            kind = ""
            for line in answer:
                name, _, value = line.decode().rstrip("\n").partition(": ")
                if name == "event":
                    kind = value
                elif name == "data" and kind == "job":
                    yield json.loads(value)

    def download(self, video_id: str, path: Union[str, Path], variant: str = "video") -> Path:
        """Writes a completed video, or its "thumbnail" or "metadata", to a file."""
        with (
            self._open("GET", f"/v1/videos/{_quoted(video_id)}/content?variant={_quoted(variant)}") as answer,
            atomic_write(path) as temporary,
            open(temporary, "wb") as file,
        ):
            shutil.copyfileobj(answer, file)
        return Path(path)

    def upload(self, path: Union[str, Path]) -> dict[str, Any]:
        """Uploads an image or a video; its "id" is the "file" of a request's frames."""
        return self.upload_bytes(Path(path).read_bytes(), Path(path).name)

    def upload_bytes(self, content: bytes, name: str) -> dict[str, Any]:
        boundary = secrets.token_hex(16)
        shown = "".join(letter for letter in name if letter.isprintable() and letter not in '"\\')
        kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{shown}"\r\n'
            f"Content-Type: {kind}\r\n\r\n"
        )
        body = head.encode() + content + f"\r\n--{boundary}--\r\n".encode()
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}", "X-Requested-With": "opensora"}
        with self._open("POST", "/v1/files", body, headers) as answer:
            return json.load(answer)

    def cancel(self, video_id: str) -> Job:
        return self._json("POST", f"/v1/videos/{_quoted(video_id)}/cancel", {})

    def delete(self, video_id: str) -> None:
        self._json("DELETE", f"/v1/videos/{_quoted(video_id)}")

    def estimate(self, prompt: str, **fields: Any) -> dict[str, Any]:
        """Memory and time of a video before it is made."""
        return self._json("POST", "/v1/estimate", {"prompt": prompt, **fields})

    def command(self, video_id: str) -> str:
        """A command line that makes the same video."""
        return self._json("GET", f"/v1/videos/{_quoted(video_id)}/command")["command"]

    def service(self) -> dict[str, Any]:
        """Models, limits and state of the service."""
        return self._json("GET", "/v1/service")

    def _json(self, method: str, path: str, body: Optional[Mapping[str, Any]] = None) -> Any:
        content = None if body is None else json.dumps(body).encode()
        with self._open(method, path, content, {"Content-Type": "application/json"}) as answer:
            return json.load(answer)

    def _open(
        self, method: str, path: str, body: Optional[bytes] = None, headers: Optional[Mapping[str, str]] = None
    ) -> Any:
        request = urllib.request.Request(
            f"{self.address}{path}", body, {**self._headers, **(headers or {})}, method=method
        )
        try:
            return urllib.request.urlopen(request, timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            raise _studio_error(error) from error


def _quoted(text: str) -> str:
    return urllib.parse.quote(text, safe="")


def _studio_error(error: urllib.error.HTTPError) -> StudioError:
    try:
        found = json.load(error)["error"]
        code, message, param = found["code"], found["message"], found["param"]
    except (ValueError, KeyError, TypeError):  # another server
        code, message, param = "error", f"HTTP status {error.code}", None
    wait = error.headers.get("Retry-After", "")
    return StudioError(error.code, code, message, param, float(wait) if wait.isdigit() else None)
