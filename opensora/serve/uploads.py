"""Uploads: written to the disk as they arrive, decoded in a process of its own, kept as a re-encoded copy."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from starlette.datastructures import UploadFile
from starlette.requests import Request

from opensora.serve.errors import ApiError, invalid
from opensora.serve.requests import new_id
from opensora.serve.store import Upload
from opensora.serve.studio import Studio

DECODE_SECONDS = 180.0
AT_ONCE = 2  # processes that decode
COPY_BYTES = 1 << 20
LARGEST_COPY = 16  # times --max_upload_mb
LONGEST_NAME = 100


class Uploads:
    """Receives the uploads of a studio."""

    def __init__(self, studio: Studio):
        self._studio = studio
        self._decoding = asyncio.Semaphore(AT_ONCE)

    async def receive(self, request: Request) -> Upload:
        """Stores the field `file` of a multipart request.

        Raises:
            ApiError: no such field, too many bytes, or a file that cannot be decoded within limits.
        """
        studio = self._studio
        studio.check_disk(2 * studio.options.max_upload_bytes)
        async with request.form(max_files=1, max_fields=4) as form:
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise invalid("file", "send the image or video as the field file of multipart/form-data")
            upload_id = new_id("file")
            folder = studio.upload_folder(upload_id)
            folder.mkdir()
            try:
                original = folder / "original"
                await asyncio.to_thread(_write, file, original, studio.options.max_upload_bytes)
                async with self._decoding:
                    fields = await self._decode(original, folder)
                original.unlink()
                upload = studio.store.add_upload(upload_id, name=_shown_name(file.filename or ""), **fields)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
        self._remove_oldest()
        return upload

    async def _decode(self, original: Path, folder: Path) -> dict[str, Any]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "opensora.serve.upload_process", str(original), str(folder)),
            str(LARGEST_COPY * self._studio.options.max_upload_bytes),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={
                "PATH": os.environ.get("PATH", os.defpath),
                "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path),
                "OPENBLAS_NUM_THREADS": "1",  # its threads reserve memory
            },
            start_new_session=True,
        )
        try:
            answer, _ = await asyncio.wait_for(process.communicate(), DECODE_SECONDS)
            found = json.loads(answer)
        except asyncio.TimeoutError as error:
            raise invalid("file", "decoding the file takes too long") from error
        except ValueError as error:
            raise invalid("file", "decoding the file failed: it is damaged, or takes too much memory") from error
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with the ffmpeg that it may have started
            await process.wait()
        if "error" in found:
            raise invalid("file", found["error"])
        return found

    def _remove_oldest(self) -> None:
        ids = self._studio.store.upload_ids()
        for upload_id in ids[: max(0, len(ids) - self._studio.options.max_uploads)]:
            self._studio.store.remove_upload(upload_id)
            shutil.rmtree(self._studio.upload_folder(upload_id), ignore_errors=True)


def _write(file: UploadFile, path: Path, most: int) -> None:
    written = 0
    with open(path, "xb") as target:
        while chunk := file.file.read(COPY_BYTES):
            written += len(chunk)
            if written > most:
                raise ApiError(413, "too_large", f"the file has more than {most} bytes")
            target.write(chunk)
    if not written:
        raise invalid("file", "the file is empty")


def _shown_name(name: str) -> str:
    """The client's name of a file, to show it; it is never a path."""
    name = re.split(r"[/\\]", name)[-1]
    return "".join(letter for letter in name if letter.isprintable())[:LONGEST_NAME] or "upload"
