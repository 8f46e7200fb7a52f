"""Reads videos with decord, an optional backend that is imported on first use."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Optional

import numpy as np

from opensora.datasets.media.packet_index import PacketIndex
from opensora.errors import UserError

BATCH = 16  # frames that decord decodes at a time; bounds memory


@cache
def import_decord():
    """The decord module.

    Raises:
        UserError: it is not installed.
    """
    # decord loads its library with RTLD_GLOBAL, which shows its symbols to libraries that are loaded later; MindSpore
    # aborts on them.
    names, rtld_global = vars(ctypes), ctypes.RTLD_GLOBAL
    names["RTLD_GLOBAL"] = ctypes.RTLD_LOCAL
    try:
        import decord
    except (ImportError, OSError) as error:
        raise UserError("the decord backend needs the decord package: pip install decord==0.6.0") from error
    finally:
        names["RTLD_GLOBAL"] = rtld_global
    decord.logging.set_level(decord.logging.QUIET)
    return decord


class DecordReader:
    """Reads frames by number with decord.

    decord numbers frames by packets, ignores edit lists and returns wrong frames for negative time stamps. It is used
    only if the packet index determines the frames and no time stamp is negative.
    """

    def __init__(self, path: Path, shape: tuple[int, int]):
        self.shape = shape
        self._reader = import_decord().VideoReader(os.path.abspath(path), num_threads=1)

    @classmethod
    def open(cls, path: Path, packets: Optional[PacketIndex], shape: tuple[int, int]) -> Optional[DecordReader]:
        """A reader of frames of `shape` (height, width), or None if decord does not read this file correctly."""
        if packets is None or packets.has_negative_times:
            return None
        try:
            reader = cls(path, shape)
        except import_decord().DECORDError:
            return None
        return reader if len(reader._reader) == len(packets) else None

    def read(self, indices: Sequence[int]) -> Optional[np.ndarray]:
        """uint8 RGB (len(indices), H, W, 3), or None if decord fails."""
        decord = import_decord()
        frames = np.empty((len(indices), *self.shape, 3), np.uint8)
        try:
            for start in range(0, len(indices), BATCH):
                batch = indices[start : start + BATCH]
                frames[start : start + len(batch)] = self._reader.get_batch(batch).asnumpy()
        except (decord.DECORDError, decord.DECORDLimitReachedError, IndexError, ValueError):
            return None
        return frames
