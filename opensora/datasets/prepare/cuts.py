"""Detects cuts between scenes by comparing small versions of consecutive frames.

A frame starts a new scene if all of these hold:

- It differs from the frame before: by MIN_DIFFERENCE levels on average, and also by MIN_HISTOGRAM between the color
  histograms, unless the difference is at least LARGE_DIFFERENCE. Motion moves pixels but keeps the histogram. Two
  scenes may share a histogram, but hardly the position of every color.
- The difference is MIN_RATIO times those of the frames around it (the RANK-th largest of them). A camera that pans or
  shakes, and videos that repeat frames, have many large differences in a row. A rank above 1 tolerates another cut
  and a flash nearby.
- The image does not return. A flash, or an object that passes right before the camera, changes the image twice: some
  frame shortly after it resembles the frame before it.

In videos with camera motion and moving objects, cuts differ by 46 to 82 levels, by 0.2 to 0.7 between histograms and
by 2.7 to 16 times the frames around them. Motion reaches 20 levels, 0.1 and 1.2 times. Fades and dissolves change
gradually and are not detected.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import av
import numpy as np
from av.video.reformatter import VideoReformatter

HEIGHT, WIDTH = 27, 48  # pixels of the small frames; averaging removes noise and small motion
BINS = 16  # of each color's histogram
MIN_DIFFERENCE, LARGE_DIFFERENCE = 12.0, 40.0  # levels of 255
MIN_HISTOGRAM = 0.15  # share of the pixels
MIN_RATIO = 2.0
RANK = 3
NEIGHBORHOOD = 0.5  # seconds before and after a frame
LONGEST_FLASH = 0.33  # seconds
RETURNED = 0.5  # of the difference to the frame before; an image that comes this close to it has returned
DEFAULT_FPS = 24.0  # of files without a frame rate
MIN_FRAMES, MAX_FRAMES = 4, 30  # of these periods, for files with an unusual frame rate


class CutDetector:
    """Finds the cuts of a video whose frames are passed one by one; memory does not grow with the frames' size.

    Args:
        fps: frame rate of the video; 0: unknown.
    """

    def __init__(self, fps: float):
        self._neighbors, self._flash = (
            int(np.clip(round(seconds * (fps or DEFAULT_FPS)), MIN_FRAMES, MAX_FRAMES))
            for seconds in (NEIGHBORHOOD, LONGEST_FLASH)
        )
        self._reformatter = VideoReformatter()
        self._recent: deque[np.ndarray] = deque(maxlen=2 * self._flash + 2)
        self._count = 0
        self._differences = [0.0]  # of each frame to the one before
        self._candidates: list[int] = []  # frames that pass all tests but that of the neighborhood

    def add(self, frame: av.VideoFrame) -> None:
        """The next frame, of any size."""
        small = self._reformatter.reformat(frame, width=WIDTH, height=HEIGHT, format="rgb24", interpolation="AREA")
        self.add_small(small.to_ndarray())

    def add_small(self, frame: np.ndarray) -> None:
        """The next frame, uint8 (h, w, 3), of the same size as all others."""
        self._recent.append(frame.astype(np.int16))
        self._count += 1
        if self._count > 1:
            self._differences.append(_difference(self._recent[-1], self._recent[-2]))
        if self._count > self._flash + 1:  # the frames that follow this one during a flash are known
            self._check(self._count - 1 - self._flash)

    def cuts(self) -> list[int]:
        """The numbers of the frames that start a new scene, without 0. No frame may be added afterwards."""
        for number in range(max(1, self._count - self._flash), self._count):
            self._check(number)
        differences = np.array(self._differences)
        return [number for number in self._candidates if self._stands_out(number, differences)]

    def _check(self, number: int) -> None:
        """Tests a frame that is in the middle of the recent ones."""
        difference = self._differences[number]
        if difference < MIN_DIFFERENCE:
            return
        frames = list(self._recent)
        place = number - (self._count - len(frames))
        last, first = frames[place - 1], frames[place]
        if difference < LARGE_DIFFERENCE and _histogram_difference(last, first) < MIN_HISTOGRAM:
            return
        before = frames[max(0, place - 1 - self._flash) : place - 1]
        after = frames[place + 1 : place + 1 + self._flash]
        if _nearest(last, after) >= RETURNED * difference and _nearest(first, before) >= RETURNED * difference:
            self._candidates.append(number)

    def _stands_out(self, number: int, differences: np.ndarray) -> bool:
        start = max(1, number - self._neighbors)
        others = np.delete(differences[start : number + self._neighbors + 1], number - start)
        if not len(others):
            return True
        return bool(differences[number] >= MIN_RATIO * np.sort(others)[-min(RANK, len(others))])


def scenes(frames: int, cuts: Sequence[int]) -> list[tuple[int, int]]:
    """The scenes of a video with `frames` frames: first frame, and the frame after the last."""
    limits = [0, *cuts, frames]
    return list(zip(limits[:-1], limits[1:]))


def divide(start: int, end: int, longest: int) -> list[tuple[int, int]]:
    """Divides a scene into segments of about equal length and of at most `longest` frames."""
    limits = np.linspace(start, end, -(-(end - start) // longest) + 1, dtype=int).tolist()
    return list(zip(limits[:-1], limits[1:]))


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).mean())


def _nearest(frame: np.ndarray, others: Sequence[np.ndarray]) -> float:
    return min((_difference(frame, other) for other in others), default=np.inf)


def _histogram_difference(a: np.ndarray, b: np.ndarray) -> float:
    """The share of the pixels that would have to change their bin, averaged over the colors."""
    return float(np.abs(_histogram(a) - _histogram(b)).sum() / (2 * a.size))


def _histogram(frame: np.ndarray) -> np.ndarray:
    """int (3, BINS)."""
    bins = frame.reshape(-1, 3) * BINS // 256
    return np.stack([np.bincount(bins[:, channel], minlength=BINS) for channel in range(3)])
