"""Downloads: redirects, allowed addresses, limits of time and size. The servers run on this machine."""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from opensora.utils import download
from opensora.utils.download import fetch, is_public

CONTENT = b"content" * 1000


class Server(BaseHTTPRequestHandler):
    """/NAME is a file; /to/URL redirects there; /chunked/NAME has no length."""

    protocol_version = "HTTP/1.1"
    asked: list = []

    def do_GET(self):
        self.asked.append(self.path)
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path[len("/to/") :].rpartition("/")[0])
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        if "chunked" in self.path:
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(CONTENT), CONTENT))
            return
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    Server.asked = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@contextmanager
def raw_server(pieces, pause=0.05):
    """A server that sends pieces of bytes with pauses between them, endlessly if `pieces` is endless."""
    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve():
            try:
                connected, _ = listening.accept()
                with connected:
                    connected.recv(1 << 16)  # the request
                    for piece in pieces:
                        connected.sendall(piece)
                        if done.wait(pause):
                            break
            except OSError:  # the client has closed the connection
                pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/a.png"
        done.set()
        thread.join()


def endless(start: bytes, piece: bytes):
    yield start
    while True:
        yield piece


def test_files_and_redirects_are_fetched(server, tmp_path):
    for url in (
        f"{server}/a.png",
        f"{server}/chunked/a.png",
        f"{server}/to//moved/a.png",
        f"{server}/to/{server}/b.png/a.png",
    ):
        assert fetch(url, tmp_path, allow_local=True).read_bytes() == CONTENT
    assert fetch(f"{server}/ä ö.png?size=[3]", tmp_path, allow_local=True).name.endswith("_ä_ö.png")
    assert Server.asked[-1] == "/%C3%A4%20%C3%B6.png?size=[3]"
    assert not list(tmp_path.glob("*.part*"))


@pytest.mark.parametrize(
    "target, words",
    [
        ("file:///etc/passwd", "redirects to file:///etc/passwd, which is neither http nor https"),
        ("ftp://example.org/a.png", "neither http nor https"),
        ("data:image/png;base64,AAAA", "neither http nor https"),
        ("http://:80/b.png", "should be a http or https URL"),
    ],
)
def test_redirects_to_other_schemes_are_rejected(server, tmp_path, target, words):
    with pytest.raises(OSError, match=words) as error:
        fetch(f"{server}/to/{target}/a.png", tmp_path, allow_local=True)
    assert str(error.value).startswith(f"{server}/to/{target}/a.png: cannot be fetched (")
    assert "fetch it yourself and give the file's path" in str(error.value) and "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_endless_redirects_are_rejected(server, tmp_path):
    Server.asked = []
    loop = f"{server}/to/" * 8 + f"{server}/b.png" + "/a.png" * 8
    with pytest.raises(OSError, match="redirects more than 5 times"):
        fetch(loop, tmp_path, allow_local=True)
    assert len(Server.asked) == 6


@pytest.mark.parametrize(
    "host",
    "127.0.0.1 localhost 2130706433 0177.0.0.1 0x7f.1 127.1 0.0.0.0 [::1] [::ffff:127.0.0.1] 10.1.2.3 192.168.0.1 "
    "172.16.0.1 169.254.169.254 [fe80::1] [fd00::1] 224.0.0.1 [64:ff9b::7f00:1] [2002:7f00:1::]".split(),
)
def test_local_addresses_are_rejected_before_connecting(tmp_path, monkeypatch, host):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("connected"))
    with pytest.raises(
        OSError,
        match="not a public address; --allow_local permits it|cannot be fetched .*(resolution|not known|supported)",
    ):
        fetch(f"http://{host}:9/a.png", tmp_path)


def test_redirect_to_a_local_address_is_rejected(server, tmp_path, monkeypatch):
    """Every hop is checked: here the first address counts as public."""
    monkeypatch.setattr(download, "is_public", lambda address: str(address) != "127.0.0.2")
    with pytest.raises(OSError, match="127.0.0.2 is 127.0.0.2, which is not a public address"):
        fetch(f"{server}/to/http://127.0.0.2:{server.rpartition(':')[2]}/secret.png/a.png", tmp_path)
    assert len(Server.asked) == 1


def test_name_is_resolved_only_once(server, tmp_path, monkeypatch):
    """A name server that answers differently the second time has no effect."""
    port = int(server.rpartition(":")[2])
    answers = [[(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answers.pop())
    monkeypatch.setattr(download, "is_public", lambda address: True)
    assert fetch(f"http://example.org:{port}/a.png", tmp_path).read_bytes() == CONTENT
    assert not answers


def test_name_with_public_and_local_addresses_is_rejected(tmp_path, monkeypatch):
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80)) for address in ("93.184.216.34", "127.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("connected"))
    with pytest.raises(OSError, match="example.org is 127.0.0.1, which is not a public address"):
        fetch("http://example.org/a.png", tmp_path)


@pytest.mark.parametrize(
    "address, expected",
    [(address, True) for address in "8.8.8.8 2606:4700::1111 ::ffff:8.8.8.8 64:ff9b::808:808".split()]
    + [
        (address, False)
        for address in "127.9.9.9 100.64.0.1 240.0.0.1 255.255.255.255 0.0.0.0 239.1.1.1 :: ::1 ::127.0.0.1 "
        "::ffff:10.0.0.1 ff02::1 fec0::1 2001:0:0:0:0:0:f5ff:fffe 2001:db8::1".split()
    ],
)
def test_public_addresses_are_recognized(address, expected):
    assert is_public(ipaddress.ip_address(address)) is expected


@pytest.mark.parametrize(
    "start, piece",
    [
        (b"", b""),  # no answer at all
        (b"HTTP/1.1 200 OK\r\nX-Slow: ", b"a"),  # an unterminated header
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),  # endless interim responses
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b"a"),  # a slow body
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n"),
    ],
    ids=["silence", "headers", "continue", "body", "chunks"],
)
def test_slow_servers_time_out(tmp_path, start, piece):
    with raw_server(endless(start, piece)) as url:
        begun = time.monotonic()
        with pytest.raises(OSError, match="cannot be fetched .(it takes too long|timed out)"):
            fetch(url, tmp_path, seconds=0.6, allow_local=True)
        assert time.monotonic() - begun < 5
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


@pytest.mark.parametrize(
    "answer, words",
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\nabc", "2,000 bytes, 1,000 are the limit"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"a" * 1500, "more than 1,000 bytes"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\nabc", "ended after 3 of 500 bytes|IncompleteRead"),
        (b"HTTP/1.1 404 Gone\r\nContent-Length: 0\r\n\r\n", "HTTP 404 Gone"),
        (b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n", "HTTP 302 Found"),
        (b"no http\r\n\r\n", "cannot be fetched"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000 + b"\r\n", "more than 100 headers"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n", "header line"),
    ],
    ids=["promise", "size", "short", "missing", "nowhere", "nonsense", "headers", "line"],
)
def test_invalid_responses_are_rejected(tmp_path, answer, words):
    with raw_server([answer], pause=0) as url:
        with pytest.raises(OSError, match=words):
            fetch(url, tmp_path, most_bytes=1000, allow_local=True)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


@pytest.mark.parametrize(
    "url",
    "file:///etc/passwd ftp://example.org/a http:///a.png http://example.org/ http://[::1/a.png "
    "http://example.org:99999/a.png http://example.org:0/a.png".split(),
)
def test_urls_without_file_are_rejected(tmp_path, url):
    with pytest.raises(ValueError, match="should be a http or https URL that ends with the name of a file"):
        fetch(url, tmp_path)
