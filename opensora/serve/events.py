"""Server-sent events: the latest state of every job, to any number of readers of any speed.

A reader that falls behind gets the latest state of a job, not every state before it: what waits for it is at most one
event for each job. A reader with too many waiting events is dropped, and connects again.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterable
from typing import Any, Optional

from opensora.serve.errors import ApiError

HEARTBEAT = 15.0  # seconds; proxies close connections that are silent for longer
MOST_WAITING = 10000  # events of a reader
MOST_READERS = 256
END = object()


def event_text(kind: str, data: Any) -> str:
    """An event of the stream. Its id is the time, which a reader sends when it connects again."""
    return f"id: {time.time():.3f}\nevent: {kind}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n"


class Reader:
    """The events that wait for a reader, by what they are about."""

    def __init__(self, only: Optional[str] = None):
        self.only = only
        self._waiting: dict[str, Any] = {}
        self._wake = asyncio.Event()

    def put(self, about: str, text: Any) -> None:
        self._waiting.pop(about, None)  # the newer one takes a later place
        self._waiting[about] = text
        if len(self._waiting) > MOST_WAITING:
            self._waiting = {"": END}
        self._wake.set()

    async def texts(self) -> AsyncIterator[str]:
        """The events, and a comment as a heartbeat when there was none for a while. Ends after `END`."""
        while True:
            try:
                await asyncio.wait_for(self._wake.wait(), HEARTBEAT)
            except asyncio.TimeoutError:
                yield ": heartbeat\n\n"
                continue
            self._wake.clear()
            waiting, self._waiting = self._waiting, {}
            for text in waiting.values():
                if text is END:
                    return
                yield text


class Broker:
    """Passes events to all readers."""

    def __init__(self) -> None:
        self._readers: set[Reader] = set()
        self._closed = False

    def publish(self, kind: str, about: str, data: Any) -> None:
        """Sends an event; `about` is the id of its job, or another name for what it replaces."""
        if not self._readers:
            return
        text = event_text(kind, data)
        for reader in self._readers:
            if reader.only in (None, about):
                reader.put(about, text)

    def end(self, about: str) -> None:
        """Ends the streams that are only about this job."""
        for reader in self._readers:
            if reader.only == about:
                reader.put("", END)

    def close(self) -> None:
        """Ends all streams, now and from now on."""
        self._closed = True
        for reader in self._readers:
            reader.put("", END)

    async def stream(
        self, first: Iterable[tuple[str, str, Any]], only: Optional[str] = None, ends: bool = False
    ) -> AsyncIterator[str]:
        """The events of a connection: those of `first`, as (kind, about, data), and unless it `ends` all that follow.

        Args:
            only: the job that all events are about.
        """
        reader = Reader(only)
        for kind, about, data in first:
            reader.put(about, event_text(kind, data))
        if self._closed or ends:
            reader.put("", END)
        self._readers.add(reader)
        try:
            async for text in reader.texts():
                yield text
        finally:
            self._readers.discard(reader)

    def check_room(self) -> None:
        """Raises ApiError if there are too many readers."""
        if len(self._readers) >= MOST_READERS:
            raise ApiError(
                503,
                "too_many_readers",
                "too many clients follow the events; try again later",
                None,
                {"Retry-After": "10"},
            )
