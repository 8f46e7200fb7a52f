"""Errors of the HTTP interface: {"error": {"code": "queue_full", "message": "...", "param": "size" or null}}."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Optional


class ApiError(Exception):
    """An answer that is an error.

    Args:
        status: HTTP status.
        code: for programs, in lower case with underscores.
        message: for people: what is wrong, and the remedy.
        param: the field of the request that is wrong.
        headers: further headers of the answer.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        param: Optional[str] = None,
        headers: Optional[Mapping[str, str]] = None,
    ):
        super().__init__(message)
        self.status, self.code, self.message, self.param = status, code, message, param
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        return {"error": {"code": self.code, "message": self.message, "param": self.param}}


def invalid(param: Optional[str], message: str) -> ApiError:
    """A field of a request that cannot be accepted."""
    return ApiError(422, "invalid_request", message, param)


def not_found(what: str) -> ApiError:
    return ApiError(404, "not_found", f"there is no such {what}")
