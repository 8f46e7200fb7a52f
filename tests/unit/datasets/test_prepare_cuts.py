"""Cuts between scenes: found at the right frame, and not found in motion, flashes and repeated frames."""

from __future__ import annotations

import numpy as np
import pytest
from made_clips import moving_square
from video_files import moving_image

from opensora.datasets.media import write_video
from opensora.datasets.prepare.cuts import CutDetector, divide, scenes
from opensora.datasets.prepare.survey import survey

FPS = 24


def noise(seed: int, size: tuple = (48, 64)) -> np.ndarray:
    """A texture with coarse structure, float (H, W, 3)."""
    coarse = np.random.default_rng(seed).uniform(20, 235, (size[0] // 8 + 1, size[1] // 8 + 1, 3))
    return coarse.repeat(8, 0).repeat(8, 1)[: size[0], : size[1]]


def pan(frames: int, seed: int, speed: int) -> np.ndarray:
    """uint8 (frames, 48, 64, 3): a camera that moves over a wide texture."""
    wide = noise(seed, (48, 64 + speed * frames)).astype(np.uint8)
    return np.stack([wide[:, speed * time : speed * time + 64] for time in range(frames)])


def cuts_of(frames: np.ndarray, fps: float = FPS) -> list[int]:
    detector = CutDetector(fps)
    for frame in frames:
        detector.add_small(frame)
    return detector.cuts()


def cuts_of_file(path, frames: np.ndarray) -> list[int]:
    with write_video(path, FPS) as write:
        write(frames)
    found = survey(str(path))
    assert found.frames == len(frames)
    return found.cuts


@pytest.mark.parametrize("place", [1, 13, 30, 59])
def test_cut_is_found_at_its_frame(place, tmp_path):
    first, second = moving_square(place, 48, 64, (250, 40, 30)), moving_image(60 - place)
    assert cuts_of_file(tmp_path / "clip.mp4", np.concatenate([first, second])) == [place]


def test_several_cuts_are_found(tmp_path):
    parts = [pan(20, 1, 1), pan(25, 2, 1), moving_square(12, 48, 64, (0, 200, 0)), pan(30, 3, 2)]
    assert cuts_of_file(tmp_path / "clip.mkv", np.concatenate(parts)) == [20, 45, 57]


def test_cut_between_scenes_of_equal_colors_is_found():
    still = noise(4).astype(np.uint8)
    assert cuts_of(np.stack([still] * 20 + [still[::-1]] * 20)) == [20]


@pytest.mark.parametrize("color", [(255, 255, 255), (0, 0, 0)])
@pytest.mark.parametrize("length", [1, 2, 6])
def test_flash_is_no_cut(color, length, tmp_path):
    frames = pan(50, 5, 1)
    frames[20 : 20 + length] = color
    assert cuts_of_file(tmp_path / "clip.mp4", frames) == []


def test_flash_beside_a_cut_leaves_the_cut():
    frames = np.concatenate([pan(30, 6, 1), pan(30, 7, 1)])
    frames[24:26] = 255
    assert cuts_of(frames) == [30]


@pytest.mark.parametrize("frames", [4, 8, 20])
def test_fast_object_is_no_cut(frames, tmp_path):
    """A square of a fifth of the image crosses it in 4 to 20 frames while the background is still."""
    video = np.repeat(noise(8)[None].astype(np.uint8), 40, 0)
    for time in range(frames):
        left = (64 + 24) * time // frames - 24
        video[10 + time, 12:36, max(0, left) : left + 24] = (255, 230, 0)
    assert cuts_of_file(tmp_path / "clip.mp4", video) == []


def test_object_that_jumps_is_no_cut():
    """A frame is missing: a single large difference, but the colors stay."""
    video = np.repeat(noise(9)[None].astype(np.uint8), 40, 0)
    for time in range(40):
        left = 0 if time < 20 else 40
        video[time, 16:32, left : left + 16] = (255, 230, 0)
    assert cuts_of(video) == []


@pytest.mark.parametrize("speed", [2, 6, 16])
def test_camera_motion_is_no_cut(speed):
    assert cuts_of(pan(48, 10, speed)) == []


def test_repeated_frames_are_no_cuts():
    """A video of 8 frames per second, stored with 24."""
    assert cuts_of(pan(20, 11, 8).repeat(3, 0)) == []


def test_small_change_of_the_light_is_no_cut():
    still = noise(15)
    assert cuts_of(np.stack([still] * 20 + [still + 10] * 20).clip(0, 255).astype(np.uint8)) == []


def test_fade_is_no_cut():
    still = noise(12)
    assert cuts_of(np.stack([still * level for level in np.linspace(1, 0, 24)]).astype(np.uint8)) == []


def test_noise_and_short_videos_have_no_cuts():
    frames = np.random.default_rng(0).integers(0, 256, (40, 27, 48, 3), np.uint8)
    assert cuts_of(frames) == []
    assert cuts_of(frames[:1]) == [] and cuts_of(frames[:0]) == []


@pytest.mark.parametrize("fps", [0.0, 5.0, 24.0, 120.0, 1000.0])
def test_frame_rate_may_be_anything(fps):
    assert cuts_of(np.concatenate([pan(40, 13, 1), pan(40, 14, 1)]), fps) == [40]


def test_scenes_cover_the_video():
    assert scenes(100, []) == [(0, 100)] and scenes(100, [30, 60]) == [(0, 30), (30, 60), (60, 100)]


@pytest.mark.parametrize("start, end, longest", [(0, 100, 30), (7, 107, 100), (7, 108, 100), (3, 4, 10), (0, 5, 1)])
def test_segments_cover_a_scene(start, end, longest):
    segments = divide(start, end, longest)
    assert segments[0][0] == start and segments[-1][1] == end
    assert all(a[1] == b[0] for a, b in zip(segments, segments[1:]))
    lengths = [last - first for first, last in segments]
    assert max(lengths) <= longest and max(lengths) - min(lengths) <= 1
