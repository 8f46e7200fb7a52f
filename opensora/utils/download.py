"""Files from the web: in a folder of their own, whole or not at all, and within limits."""
from __future__ import annotations

import fcntl
import hashlib
import re
import time
from http.client import HTTPException
from pathlib import Path
from typing import Union
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

from opensora.utils.files import atomic_write

SECONDS = 120.0   # for a whole file
SILENCE = 20.0    # seconds without a byte
MOST_BYTES = 1 << 30
PIECE = 1 << 18  # bytes read at a time


def is_url(path: Union[str, Path]) -> bool:
    return str(path).lower().startswith(("http://", "https://"))


def fetch(url: str, folder: Union[str, Path], seconds: float = SECONDS, most_bytes: int = MOST_BYTES) -> Path:
    """The file of a URL in `folder`, from there if it was fetched before. Processes that want the same file wait.

    Its name is the URL's last part, behind some digits that tell URLs with the same last part from each other.

    Raises:
        ValueError: no http or https URL of a file.
        OSError: it cannot be fetched, is larger than `most_bytes`, takes longer than `seconds`, or ends too early.
    """
    name = re.sub(r"[^\w.\-]", "_", Path(unquote(urlsplit(url).path)).name)
    if not is_url(url) or not name.strip("."):
        raise ValueError(f"{url}: should be a http or https URL that ends with the name of a file")
    path = Path(folder) / f"{hashlib.sha256(url.encode()).hexdigest()[:10]}_{name[-100:]}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.parent / ".lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            try:
                _download(url, path, time.monotonic() + seconds, most_bytes)
            except (HTTPException, OSError) as error:
                reason = f"HTTP {error.code} {error.reason}" if isinstance(error, HTTPError) else str(error)
                raise OSError(f"{url}: cannot be fetched ({reason}); fetch it yourself and give the file's "
                              f"path") from error
    return path


def _download(url: str, path: Path, deadline: float, most_bytes: int) -> None:
    with urlopen(Request(url, headers={"User-Agent": "opensora"}), timeout=SILENCE) as answer, \
            atomic_write(path) as temporary:
        promised = answer.headers.get("Content-Length")
        if promised is not None and int(promised) > most_bytes:
            raise OSError(f"it has {int(promised):,} bytes, {most_bytes:,} are the limit")
        size = 0
        with open(temporary, "wb") as file:
            while piece := answer.read1(PIECE):
                file.write(piece)
                size += len(piece)
                if size > most_bytes:
                    raise OSError(f"it has more than {most_bytes:,} bytes")
                if time.monotonic() > deadline:
                    raise OSError(f"it takes too long, {size:,} bytes have come so far")
        if promised is not None and size != int(promised):
            raise OSError(f"it ended after {size:,} of {int(promised):,} bytes")
