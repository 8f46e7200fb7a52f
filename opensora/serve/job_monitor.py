"""Watches the denoising of a job: progress, previews, the state to continue from, and the wish to cancel."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Callable, Optional, Protocol
from zipfile import BadZipFile

import numpy as np
from mindspore import Tensor
from PIL import Image

from opensora.datasets.media.images import save_animation
from opensora.pipelines.monitor import Cancelled, StepDone
from opensora.serve.protocol import PREVIEW, STATE
from opensora.utils.files import atomic_write
from opensora.utils.logs import logger

PREVIEW_SHARE = 0.1  # of the time of a job that decoding previews may take
PREVIEW_SIDE = 320  # pixels of the longer side


class Decoder(Protocol):
    """Decodes latents (1, C, T, H, W) to uint8 frames (1, t, H, W, 3), chunk by chunk."""

    def __call__(self, latents: Tensor) -> Iterator[np.ndarray]: ...


class JobMonitor:
    """A `Monitor` of one job in one process.

    Args:
        folder: of the job.
        send: sends the service a message about the job: kind, values.
        is_cancelled: whether the processes of the job agree to end it; all of them ask after each step.
        decode: for previews; None: no previews, or another process makes them.
        fps: of the video.
        preview_interval, state_interval: seconds between previews, and between saved states.
        writes: whether this process writes files.
    """

    def __init__(
        self,
        folder: Path,
        send: Callable[..., None],
        is_cancelled: Callable[[], bool],
        decode: Optional[Decoder],
        fps: int,
        preview_interval: float,
        state_interval: float,
        writes: bool,
    ):
        self.folder, self.send, self.is_cancelled, self.decode = folder, send, is_cancelled, decode
        self.fps, self.preview_interval, self.state_interval = fps, preview_interval, state_interval
        self.writes = writes
        self.start = self.last_preview = self.last_state = time.monotonic()
        self.first = 0  # steps that an earlier process has done
        self.second: Optional[float] = None  # the start of the second step of this process
        self.preview_seconds = 0.0  # for all previews of this process
        self.frame_seconds: Optional[float] = None  # for a latent frame in the last preview

    def resume(self) -> Optional[Mapping[str, np.ndarray]]:
        """The state that an interrupted process has saved; a damaged one is not used."""
        path = self.folder / STATE
        if not path.exists():
            return None
        try:
            with np.load(path, allow_pickle=False) as file:
                state = {name: file[name] for name in file.files}
            self.first = int(state["step"])
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            logger.warning(f"{path}: damaged ({error}); the job starts again")
            return None
        logger.info(f"{self.folder.name}: continues after step {self.first}")
        return state

    def after_step(self, done: StepDone) -> None:
        """Raises Cancelled if the job was cancelled."""
        if self.is_cancelled():
            raise Cancelled
        now = time.monotonic()
        if self.second is None:
            self.second = now
        # The first step may include the compilation of the transformer.
        steps, since = (1, self.start) if done.step == self.first + 1 else (done.step - self.first - 1, self.second)
        left = (now - since) / steps * (done.steps - done.step)
        self.send("step", step=done.step, steps=done.steps, seconds_left=round(left, 2))
        if not self.writes or done.step == done.steps:
            return
        if done.state is not None and now - self.last_state >= self.state_interval:
            save_state(self.folder / STATE, done.state())
            self.last_state = time.monotonic()
        if self.decode is not None and self.preview_interval and now - self.last_preview >= self.preview_interval:
            self._preview(done, left)
            self.last_preview = time.monotonic()

    def _preview(self, done: StepDone, seconds_left: float) -> None:
        """Writes the frames that the model predicts at this step: all, or the first where all would cost too much."""
        assert self.decode is not None, "the caller has checked this"
        start = time.monotonic()
        room = PREVIEW_SHARE * (start - self.start + seconds_left) - self.preview_seconds
        if room <= 0:
            return
        latents = done.predicted_x0()
        if self.frame_seconds is None or self.frame_seconds * latents.shape[2] > room:
            latents = latents[:, :, :1]
        frames = np.concatenate([chunk[0] for chunk in self.decode(latents)])
        write_preview(self.folder / PREVIEW, frames, self.fps)
        seconds = time.monotonic() - start
        self.frame_seconds = seconds / latents.shape[2]
        self.preview_seconds += seconds
        self.send("preview", step=done.step)


def save_state(path: Path, state: Mapping[str, np.ndarray]) -> None:
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        arrays: dict[str, Any] = dict(state)
        np.savez(file, **arrays)


def write_preview(path: Path, frames: np.ndarray, fps: int) -> None:
    """Writes frames (T, H, W, 3), uint8, as an animated WebP."""
    images = [Image.fromarray(frame) for frame in frames]
    for image in images:
        image.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    save_animation(path, map(np.asarray, images), fps, quality=80)
