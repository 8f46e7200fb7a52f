"""What the service refuses: other sites, wrong tokens, large bodies, and too many requests."""

from __future__ import annotations

import json
import re
import socket
import time

import httpx
import pytest
from studio_runs import RunningStudio, studio

from opensora.config.options import from_mapping
from opensora.errors import UserError
from opensora.serve.options import ServeOptions
from opensora.serve.security import FORM_BYTES, HEADERS, JSON_BYTES, Rates, Sessions

TOKEN = "0123456789abcdef-token"
BODY = {"prompt": "a red circle", "steps": 1}


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    folder = tmp_path_factory.mktemp("studio")
    with studio(folder / "data", "--max_upload_mb", "1", "--rate_limit", "0") as found:
        yield found


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    with studio(tmp_path_factory.mktemp("studio") / "data", "--token", TOKEN, "--rate_limit", "0") as found:
        yield found


def code(answer: httpx.Response) -> str:
    return answer.json()["error"]["code"]


@pytest.mark.parametrize("path", ["/healthz", "/v1/service", "/v1/videos/x", "/nothing", "/page/nothing"])
def test_every_answer_has_the_headers(local, path):
    found = local.http.get(path).headers
    assert {name: found[name] for name in HEADERS} == HEADERS
    assert "unsafe" not in found["content-security-policy"]
    refused = local.http.get(path, headers={"Host": "example.com"})
    assert refused.status_code == 421 and HEADERS.items() <= {n: refused.headers[n] for n in HEADERS}.items()


@pytest.mark.parametrize(
    "host", ["example.com", "example.com:7860", "127.0.0.1.example.com", "localhost.evil", "", "[::2]:1"]
)
def test_names_that_other_sites_chose_are_refused(local, host):
    for method, path in (("GET", "/v1/videos"), ("GET", "/"), ("POST", "/v1/videos")):
        answer = local.http.request(method, path, headers={"Host": host}, json=BODY if method == "POST" else None)
        assert answer.status_code == 421 and code(answer) == "wrong_host"


@pytest.mark.parametrize("host", ["localhost", "localhost:7860", "127.0.0.1", "127.0.0.1:80", "[::1]:80", "[::1]"])
def test_names_of_this_machine_are_accepted(local, host):
    assert local.http.get("/healthz", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://example.com"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_pages_of_other_sites_change_nothing(local, headers):
    count = len(local.http.get("/v1/videos").json()["data"])
    for method, path in (
        ("POST", "/v1/videos"),
        ("POST", "/v1/files"),
        ("DELETE", "/v1/videos/x"),
        ("POST", "/session"),
    ):
        answer = local.http.request(method, path, headers=headers, json=BODY)
        assert answer.status_code == 403 and code(answer) == "wrong_origin"
    assert len(local.http.get("/v1/videos").json()["data"]) == count


def test_the_own_page_may(local):
    headers = {"Origin": local.address, "Sec-Fetch-Site": "same-origin"}
    assert local.http.post("/v1/videos", json=BODY, headers=headers).status_code == 201


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
def test_bodies_that_forms_can_send_are_refused(local, kind):
    answer = local.http.post("/v1/videos", content=json.dumps(BODY), headers={"Content-Type": kind})
    assert answer.status_code == 415 and code(answer) == "wrong_type"


@pytest.mark.parametrize("path", ["/v1/videos", "/v1/files", "/nothing"])
def test_the_answer_to_a_refused_body_arrives_although_the_body_comes_later(local, path):
    half = bytes(1000)
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {2 * len(half)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", local.port), timeout=20) as connection:
        connection.sendall(head.encode())
        answer = connection.recv(1)
        for _ in range(2):
            connection.sendall(half)
            time.sleep(0.1)
        while received := connection.recv(1 << 16):
            answer += received
    assert answer.startswith(b"HTTP/1.1 415 ") and answer.endswith(b"}}")


def test_a_connection_is_closed_when_the_refused_body_never_comes(local):
    head = b"POST /v1/videos HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n"
    with socket.create_connection(("127.0.0.1", local.port), timeout=20) as connection:
        connection.sendall(head)
        while connection.recv(1 << 16):
            pass


def test_uploads_need_the_header_that_forms_cannot_send(local):
    answer = local.http.post("/v1/files", files={"file": ("x.png", b"x")})
    assert answer.status_code == 415 and "X-Requested-With" in answer.json()["error"]["message"]


def test_there_is_no_cross_origin_sharing(local):
    answer = local.http.get("/v1/videos", headers={"Origin": "http://example.com"})
    assert not [name for name in answer.headers if name.startswith("access-control")]
    assert local.http.options("/v1/videos", headers={"Origin": "http://example.com"}).status_code == 405


def test_announced_sizes_are_refused_before_the_body(local):
    """The answer comes although not one byte of the body was sent."""
    for path, size, kind in (
        ("/v1/videos", JSON_BYTES + 1, "application/json"),
        ("/v1/files", (1 << 20) + FORM_BYTES + 1, "multipart/form-data; boundary=x"),
    ):
        head = (
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nX-Requested-With: opensora\r\n"
            f"Content-Length: {size}\r\n\r\n"
        )
        assert b" 413 " in exchange(local.port, head.encode()).splitlines()[0]


@pytest.mark.parametrize("path", ["/v1/videos", "/v1/files"])
def test_chunked_bodies_are_refused_when_they_are_too_long(local, path):
    sent = 0

    def body():
        nonlocal sent
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
        while sent < 64 << 20:
            sent += 1 << 16
            yield bytes(1 << 16)

    kind = "multipart/form-data; boundary=x" if path == "/v1/files" else "application/json"
    try:
        answer = local.http.post(path, content=body(), headers={"Content-Type": kind, "X-Requested-With": "opensora"})
        assert answer.status_code == 413 and code(answer) == "too_large"
    except httpx.TransportError:  # the service closed the connection while the body was sent
        pass
    assert sent < 32 << 20
    assert not list((local.data / "files").iterdir())


@pytest.mark.parametrize(
    "path",
    [
        "/page/../options.py",
        "/page/%2e%2e/options.py",
        "/page/..%2foptions.py",
        "/page//etc/passwd",
        "/page/%00",
        "/v1/videos/../../../etc/passwd",
        "/v1/videos/%2e%2e/content",
        "/v1/files/..%2f..%2fqueue.sqlite/content",
    ],
)
def test_paths_of_requests_lead_to_no_other_file(local, path):
    answer = exchange(local.port, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    assert b" 404 " in answer.splitlines()[0] and b"root:" not in answer and b"dataclass" not in answer


def test_open_paths_need_no_token_and_others_do(guarded):
    assert guarded.http.get("/healthz").status_code == 200
    assert guarded.http.get("/").status_code in (200, 404)  # the page, which asks for the token
    for method, path in (
        ("GET", "/v1/videos"),
        ("POST", "/v1/videos"),
        ("GET", "/v1/events"),
        ("GET", "/v1/service"),
        ("POST", "/v1/files"),
        ("GET", "/openapi.json"),
        ("GET", "/nothing"),
        ("DELETE", "/v1/videos/x"),
    ):
        answer = guarded.http.request(method, path, headers={"Content-Type": "application/json"})
        assert answer.status_code == 401 and code(answer) == "unauthorized", path
        assert answer.headers["www-authenticate"] == "Bearer"


def test_bearer_token(guarded):
    assert guarded.http.get("/v1/videos", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    for wrong in (f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", "Bearer", "Basic x", f"Bearer {TOKEN[::-1]}"):
        assert guarded.http.get("/v1/videos", headers={"Authorization": wrong}).status_code == 401


def test_session_cookie(guarded):
    with httpx.Client(base_url=guarded.address) as browser:
        assert browser.post("/session", json={"token": TOKEN}).status_code == 204
        cookie = browser.post("/session", json={"token": TOKEN}).headers["set-cookie"]
        assert "HttpOnly" in cookie and re.search("samesite=strict", cookie, re.I) and TOKEN not in cookie
        assert browser.get("/v1/videos").status_code == 200
        assert browser.post("/v1/videos", json=BODY).status_code == 201
        other = httpx.Cookies({"opensora_session": browser.cookies["opensora_session"][:-1] + "x"})
    assert httpx.get(f"{guarded.address}/v1/videos", cookies=other).status_code == 401
    assert guarded.http.post("/session", json={"token": "wrong"}).status_code == 401


def test_guessing_tokens_is_slowed_down(tmp_path):
    with studio(tmp_path / "data", "--token", TOKEN) as running:
        statuses = [
            running.http.get("/v1/videos", headers={"Authorization": f"Bearer {number}"}).status_code
            for number in range(40)
        ]
        assert 401 in statuses and statuses[-1] == 429


def test_old_and_foreign_cookies_are_refused(monkeypatch):
    sessions = Sessions(TOKEN)
    cookie = sessions.cookie()
    assert sessions.is_cookie(cookie) and not Sessions(TOKEN + "2").is_cookie(cookie)
    assert not any(sessions.is_cookie(text) for text in ("", ".", "1.2", "x", "\udcff.\udcff", cookie + "0"))
    import time

    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 31 * 24 * 3600)
    assert not sessions.is_cookie(cookie)


def test_a_client_has_a_rate(monkeypatch):
    import time

    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    rates = Rates(60)
    assert [rates.seconds_to_wait("a") for _ in range(60)] == [0.0] * 60
    assert rates.seconds_to_wait("a") == pytest.approx(1.0) and rates.seconds_to_wait("b") == 0.0
    now = 1.0
    assert rates.seconds_to_wait("a") == 0.0 and rates.seconds_to_wait("a") > 0


def test_many_requests_of_a_client_are_refused(tmp_path):
    with studio(tmp_path / "data", "--rate_limit", "10") as running:
        answers = [running.http.post("/v1/videos", json=BODY) for _ in range(12)]
        assert answers[9].status_code == 201 and code(answers[11]) == "rate_limited"
        assert int(answers[11].headers["retry-after"]) >= 1
        assert running.http.get("/v1/videos").status_code == 200  # reading is free


@pytest.mark.parametrize(
    "flags, message",
    [
        ({"host": "0.0.0.0"}, "--host 0.0.0.0: anyone who reaches this address could use the service; give --token"),
        ({"host": "::"}, "anyone"),
        ({"host": "example.com"}, "anyone"),
        ({"token": "short"}, "--token: give at least 16 characters"),
        ({"port": 70000}, "--port 70000"),
        ({"data": "a,b"}, "--data"),
        ({"max_queue": 0}, "--max_queue must be 1 or more"),
        ({"model_path": "x"}, "--model_path alone is not enough"),
    ],
)
def test_unsafe_or_wrong_options_are_refused(flags, message):
    with pytest.raises(UserError) as error:
        from_mapping(ServeOptions, flags)
    assert message in str(error.value)


def test_open_address_without_token_is_refused_before_anything_starts(run, tmp_path):
    finished = run("-m", "opensora.cli", "serve", "--host", "0.0.0.0", "--data", tmp_path / "data")
    assert finished.returncode == 1 and len(finished.stderr.splitlines()) == 1 and "--token" in finished.stderr
    assert not (tmp_path / "data").exists()


def test_the_token_is_in_no_answer_and_no_log(guarded: RunningStudio):
    service = guarded.http.get("/v1/service", headers={"Authorization": f"Bearer {TOKEN}"}).text
    assert TOKEN not in service and TOKEN not in guarded.log.read_text()


def exchange(port: int, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(request)
        return connection.recv(1 << 16)
