"""Downloads of files: atomic, and limited in size and time.

URLs may be untrusted. Therefore only http and https are followed, redirects included, and only to public addresses: a
name is resolved once, its addresses are checked, and the connection goes to a checked address. A server cannot hold
the connection open beyond the time limit, not even by sending its headers slowly. Proxies of the environment are not
used, because they resolve names themselves.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import ipaddress
import re
import socket
import ssl
import time
from contextlib import ExitStack
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from pathlib import Path
from typing import Union
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit

from opensora.errors import UserError
from opensora.utils.files import atomic_write

SECONDS = 120.0  # of a download, from the connection to the last byte, redirects included
SILENCE = 20.0  # seconds without a byte
MOST_BYTES = 1 << 30
MOST_REDIRECTS = 5
CHUNK = 1 << 18  # bytes read at a time
REDIRECTS = (301, 302, 303, 307, 308)
UNQUOTED = "!#$%&'()*+,/:;=?@[]~"  # characters of a path and query that are not percent-encoded
NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address

Address = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]


def is_url(path: Union[str, Path]) -> bool:
    return str(path).lower().startswith(("http://", "https://"))


def fetch(
    url: str,
    folder: Union[str, Path],
    seconds: float = SECONDS,
    most_bytes: int = MOST_BYTES,
    allow_local: bool = False,
) -> Path:
    """Downloads a URL into `folder`, unless it is there already; returns the path.

    Concurrent processes wait for each other. The file's name is a hash of the URL, followed by the last component of
    the URL's path.

    Args:
        allow_local: also connect to addresses that are not public, such as those of this machine and its network.

    Raises:
        UserError: not a http or https URL of a file.
        OSError: the file cannot be fetched, is larger than `most_bytes`, takes longer than `seconds`, is truncated, or
            its address, or that of a redirect, is not allowed.
    """
    name = re.sub(r"[^\w.\-]", "_", Path(unquote(_split(url).path)).name)
    if not name.strip("."):
        raise UserError(f"{url}: should be a http or https URL that ends with the name of a file")
    path = Path(folder) / f"{hashlib.sha256(url.encode()).hexdigest()[:10]}_{name[-100:]}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.parent / ".lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            try:
                _download(url, path, time.monotonic() + seconds, most_bytes, allow_local)
            except (HTTPException, OSError, ValueError) as error:
                raise OSError(
                    f"{url}: cannot be fetched ({error}); fetch it yourself and give the file's path"
                ) from error
    return path


def is_public(address: Address) -> bool:
    """Whether an address belongs to the public internet.

    False for loopback, link-local, private, shared, multicast, unspecified and reserved addresses, and for IPv6
    addresses that embed such an IPv4 address (IPv4-mapped, 6to4, Teredo, NAT64).
    """
    if address.version == 6:
        if address in NAT64:
            return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        embedded = address.ipv4_mapped or address.sixtofour or (address.teredo and address.teredo[1])
        if embedded:
            return is_public(embedded)
        if address.is_site_local:
            return False
    return address.is_global and not (address.is_multicast or address.is_reserved)


def _split(url: str) -> SplitResult:
    """The components of a URL; UserError unless it is a http or https URL with a host."""
    try:
        components = urlsplit(url)
        if is_url(url) and components.hostname and components.port != 0:
            return components
    except ValueError:  # the port is not a number, or brackets do not match
        pass
    raise UserError(f"{url}: should be a http or https URL that ends with the name of a file")


def _download(url: str, path: Path, deadline: float, most_bytes: int, allow_local: bool) -> None:
    for _ in range(MOST_REDIRECTS + 1):
        with ExitStack() as stack:
            answer = _request(url, deadline, allow_local, stack)
            if answer.status == 200:
                _save(answer, path, deadline, most_bytes)
                return
            target = answer.headers.get("Location")
            if answer.status not in REDIRECTS or not target:
                raise OSError(f"HTTP {answer.status} {answer.reason}")
        url = urljoin(url, target)
        if not is_url(url):
            raise OSError(f"it redirects to {url}, which is neither http nor https")
    raise OSError(f"it redirects more than {MOST_REDIRECTS} times")


def _request(url: str, deadline: float, allow_local: bool, stack: ExitStack) -> HTTPResponse:
    """The response to a GET request, its headers read. `stack` closes the connection."""
    components = _split(url)
    secure = components.scheme.lower() == "https"
    host = components.hostname or ""
    if not host.isascii():
        host = host.encode("idna").decode("ascii")
    port = components.port or (443 if secure else 80)
    connected = stack.enter_context(_connect(host, port, deadline, allow_local))
    if secure:
        connected.settimeout(_left(deadline))
        connected = stack.enter_context(ssl.create_default_context().wrap_socket(connected, server_hostname=host))
    connection = (HTTPSConnection if secure else HTTPConnection)(host, port)
    connection.sock = _TimedSocket(connected, deadline)
    query = f"?{components.query}" if components.query else ""
    target = quote((components.path or "/") + query, safe=UNQUOTED)
    connection.request("GET", target, headers={"User-Agent": "opensora", "Connection": "close"})
    return connection.getresponse()


def _connect(host: str, port: int, deadline: float, allow_local: bool) -> socket.socket:
    """A connection to one of a name's addresses, after all of them were checked."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for _, _, _, _, where in found:
        address = ipaddress.ip_address(str(where[0]).partition("%")[0])  # without the zone
        if not (allow_local or is_public(address)):
            raise OSError(f"{host} is {address}, which is not a public address; --allow_local permits it")
    failure: OSError = OSError(f"{host} has no address")
    for family, kind, protocol, _, where in found:
        candidate = socket.socket(family, kind, protocol)
        try:
            candidate.settimeout(_left(deadline))
            candidate.connect(where)
            return candidate
        except OSError as error:
            candidate.close()
            failure = error
    raise failure


def _save(answer: HTTPResponse, path: Path, deadline: float, most_bytes: int) -> None:
    expected = answer.length  # Content-Length, or None
    if expected is not None and expected > most_bytes:
        raise OSError(f"it has {expected:,} bytes, {most_bytes:,} are the limit")
    size = 0
    with atomic_write(path) as temporary:
        with open(temporary, "wb") as file:
            while chunk := answer.read1(CHUNK):
                file.write(chunk)
                size += len(chunk)
                if size > most_bytes:
                    raise OSError(f"it has more than {most_bytes:,} bytes")
                _left(deadline)
        if expected is not None and size != expected:
            raise OSError(f"it ended after {size:,} of {expected:,} bytes")


def _left(deadline: float) -> float:
    """The longest time in seconds that the next read may take."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise OSError("it takes too long")
    return min(left, SILENCE)


class _TimedSocket:
    """The socket methods that http.client uses, with one deadline for all reads together."""

    def __init__(self, connected: socket.socket, deadline: float):
        self.connected, self.deadline = connected, deadline

    def sendall(self, data: bytes) -> None:
        self.connected.settimeout(_left(self.deadline))
        self.connected.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_TimedReader(self))

    def close(self) -> None:
        """Does nothing: http.client closes its socket before the body is read; the file of `makefile` stays open."""


class _TimedReader(io.RawIOBase):
    def __init__(self, source: _TimedSocket):
        self.source = source

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        self.source.connected.settimeout(_left(self.source.deadline))
        return self.source.connected.recv_into(buffer)
