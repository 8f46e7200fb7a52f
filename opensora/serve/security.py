"""What every request passes before a route: host and origin, token, form of the body, size, rate.

One ASGI middleware. It passes bodies and answers through, so that uploads and events stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import ipaddress
import time
from collections import OrderedDict
from collections.abc import Mapping, MutableMapping
from typing import Any, Callable, Optional

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from opensora.serve.errors import ApiError, not_found
from opensora.serve.options import ServeOptions

COOKIE = "opensora_session"
SESSION_SECONDS = 30 * 24 * 3600
OPEN_PATHS = ("/", "/healthz", "/session")
OPEN_FOLDER = "/page/"
UPLOAD_PATH = "/v1/files"
JSON_BYTES = 256 << 10  # of a body
FORM_BYTES = 64 << 10  # of an upload besides its file
# How long, and how many bytes, the service receives of an unread body after it has sent the answer.
LINGER_SECONDS, LINGER_BYTES = 2.0, 1 << 20
CHANGING = ("POST", "PUT", "PATCH", "DELETE")
MOST_CLIENTS = 10000  # whose rates are remembered
FAILURES_PER_MINUTE = 20  # wrong tokens of one client

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' blob:; media-src 'self' blob:; object-src 'none'; base-uri 'none'; "
        "form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
Scope = MutableMapping[str, Any]


class Rates:
    """A token bucket for each client: `per_minute` requests a minute, and as many at once."""

    def __init__(self, per_minute: int):
        self.per_minute = per_minute
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # client -> what is left, at which time

    def seconds_to_wait(self, client: str, cost: float = 1.0) -> float:
        """Counts a request of the client and returns 0. If it has none left: the seconds until the next one."""
        if not self.per_minute:
            return 0.0
        now = time.monotonic()
        left, then = self._left.pop(client, (float(self.per_minute), now))
        left = min(self.per_minute, left + (now - then) * self.per_minute / 60)
        wait = max(0.0, (1 - left) * 60 / self.per_minute)
        self._left[client] = (left - cost if not wait else left, now)
        if len(self._left) > MOST_CLIENTS:
            self._left.popitem(last=False)
        return wait


class Sessions:
    """The token and the cookies of browsers, which hold a signed time but not the token."""

    def __init__(self, token: Optional[str]):
        self._token = None if token is None else token.encode()

    @property
    def needed(self) -> bool:
        return self._token is not None

    def is_token(self, text: str) -> bool:
        return self._token is not None and hmac.compare_digest(text.encode("utf-8", "surrogateescape"), self._token)

    def cookie(self) -> str:
        started = str(int(time.time()))
        return f"{started}.{self._signature(started)}"

    def is_cookie(self, text: str) -> bool:
        started, _, signature = text.partition(".")
        if not hmac.compare_digest(signature.encode("utf-8", "surrogateescape"), self._signature(started).encode()):
            return False
        return time.time() - int(started) < SESSION_SECONDS

    def _signature(self, started: str) -> str:
        message = f"opensora session {started}".encode("utf-8", "surrogateescape")
        return hmac.new(self._token or b"", message, hashlib.sha256).hexdigest()


class TooLarge(HTTPException):
    """A body that is longer than its limit. FastAPI passes this type on when it is raised while a body is read."""

    def __init__(self, most: int):
        super().__init__(413, f"the request has more than {most} bytes", {"Connection": "close"})


class Body:
    """Receives the body of a request, up to a limit.

    Args:
        most: the limit in bytes.

    Attributes:
        unread: whether the client may send more of the body.
    """

    def __init__(self, receive: Callable, headers: Headers, most: int):
        self._receive, self._most, self._got = receive, most, 0
        announced = headers.get("content-length", "0")
        self.unread = announced != "0" or "transfer-encoding" in headers
        self._announced = int(announced) if announced.isascii() and announced.isdigit() else most + 1

    def check_announced(self) -> None:
        """Raises TooLarge if the size that the headers announce is not a number, or is over the limit."""
        if self._announced > self._most:
            raise TooLarge(self._most)

    async def receive(self) -> Mapping[str, Any]:
        """The next ASGI message. Raises TooLarge when the body is over the limit."""
        message = await self._next()
        if self._got > self._most:
            raise TooLarge(self._most)
        return message

    async def discard_rest(self) -> None:
        """Receives what the client still sends, up to a limit in time and bytes, and drops it.

        Closing a connection with unread data resets it, and a reset can cost the client the answer (RFC 9112, 9.6).
        """
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._receive_until(self._got + LINGER_BYTES), LINGER_SECONDS)

    async def _receive_until(self, size: int) -> None:
        while self.unread and self._got < size:
            await self._next()

    async def _next(self) -> Mapping[str, Any]:
        message = await self._receive()
        self.unread = message.get("more_body", False)
        self._got += len(message.get("body", b""))
        return message


class Security:
    """The middleware.

    Args:
        app: what answers the requests that pass.
    """

    def __init__(self, app: Callable, options: ServeOptions, sessions: Sessions):
        self._app, self._options, self._sessions = app, options, sessions
        self._rates, self._failures = Rates(options.rate_limit), Rates(FAILURES_PER_MINUTE)

    async def __call__(self, scope: Scope, receive: Callable, send: Callable) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                if "cache-control" not in headers:
                    headers["Cache-Control"] = "no-store"
            elif body.unread and not message.get("more_body", False):
                await send({**message, "more_body": True})  # the connection stays open
                await body.discard_rest()
                message = {"type": "http.response.body"}
            await send(message)

        headers = Headers(scope=scope)
        body = Body(receive, headers, self._body_limit(scope))
        try:
            self._check(scope, headers)
            body.check_announced()
            await self._app(scope, body.receive, send_with_headers)
        except (ApiError, TooLarge) as error:
            if started:
                raise
            if isinstance(error, TooLarge):
                error = ApiError(413, "too_large", error.detail)
            answer = JSONResponse(error.body(), error.status, {**error.headers, "Connection": "close"})
            await answer(scope, receive, send_with_headers)

    def _check(self, scope: Scope, headers: Headers) -> None:
        """Raises ApiError for a request that no route should see."""
        path, changes = scope["path"], scope["method"] in CHANGING
        if "\0" in path:  # no file can have such a name; looking for one is an error
            raise not_found("page")
        if self._options.is_local:
            check_local_host(headers.get("host", ""))
        if changes:
            check_origin(headers)
        client = scope["client"][0] if scope.get("client") else ""
        if not (path in OPEN_PATHS or path.startswith(OPEN_FOLDER)):
            self._authenticate(headers, client)
        elif path == "/session":
            self._slow_down(self._failures, client, cost=0.0)
        if changes:
            check_form(path, headers)
            self._slow_down(self._rates, client)

    def _authenticate(self, headers: Headers, client: str) -> None:
        if not self._sessions.needed:
            return
        kind, _, token = headers.get("authorization", "").partition(" ")
        cookie = cookies(headers).get(COOKIE, "")
        if cookie and self._sessions.is_cookie(cookie):
            return
        self._slow_down(self._failures, client, cost=0.0)
        if kind.lower() == "bearer" and self._sessions.is_token(token.strip()):
            return
        if kind:
            self._failures.seconds_to_wait(client)
        raise ApiError(
            401,
            "unauthorized",
            "send the token of the service, as Authorization: Bearer TOKEN, or sign in on its page",
            None,
            {"WWW-Authenticate": "Bearer"},
        )

    def sign_in(self, token: str, client: str) -> bool:
        """Whether a token is right. Wrong ones are counted."""
        if self._sessions.is_token(token):
            return True
        self._failures.seconds_to_wait(client)
        return False

    def _slow_down(self, rates: Rates, client: str, cost: float = 1.0) -> None:
        wait = rates.seconds_to_wait(client, cost)
        if wait:
            raise ApiError(
                429,
                "rate_limited",
                f"too many requests; the next one may come in {wait:.0f} seconds",
                None,
                {"Retry-After": str(int(wait) + 1)},
            )

    def _body_limit(self, scope: Scope) -> int:
        return self._options.max_upload_bytes + FORM_BYTES if scope["path"] == UPLOAD_PATH else JSON_BYTES


def check_local_host(host: str) -> None:
    """Raises ApiError unless the Host header names this machine: other sites may point their names at it."""
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    name = name.strip("[]").lower()
    try:
        local = ipaddress.ip_address(name).is_loopback
    except ValueError:
        local = name == "localhost" or name.endswith(".localhost")
    if not local:
        raise ApiError(421, "wrong_host", "this service answers requests to localhost only; --host and --token open it")


def check_origin(headers: Headers) -> None:
    """Raises ApiError for a change that another site's page asks for."""
    origin, host = headers.get("origin"), headers.get("host", "").lower()
    site = headers.get("sec-fetch-site", "none")
    foreign = origin is not None and origin.lower() not in (f"http://{host}", f"https://{host}")
    if foreign or site not in ("none", "same-origin"):
        raise ApiError(403, "wrong_origin", "pages of other sites may not change anything here")


def check_form(path: str, headers: Headers) -> None:
    """Raises ApiError for a body that a form of another site could send."""
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    marked = headers.get("x-requested-with", "").lower() == "opensora"
    if kind == "application/json" or (marked and kind in ("", "multipart/form-data")):
        return
    # Browsers send no body without a type, and an origin with every POST, which has been checked.
    if not kind and headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers:
        return
    if path == UPLOAD_PATH:
        raise ApiError(415, "wrong_type", "uploads are multipart/form-data with the header X-Requested-With: opensora")
    raise ApiError(415, "wrong_type", "send JSON, with the header Content-Type: application/json")


def cookies(headers: Headers) -> dict[str, str]:
    parts = (part.strip().partition("=") for part in headers.get("cookie", "").split(";"))
    return {name: value for name, _, value in parts}
