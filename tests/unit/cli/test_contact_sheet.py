"""Contact sheets of videos, as an image and as an animation."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from opensora.cli import contact_sheet
from opensora.datasets.media import read_image, write_video
from opensora.demo.drawing import draw_clip
from opensora.demo.reading import read_scene
from opensora.demo.scenes import WORLDS, single
from opensora.errors import UserError

SMALL = WORLDS["small"]


def test_contact_sheet_tiles_frames(tmp_path, run):
    clip = draw_clip(single("red", "circle", "blue", "moves right"), np.random.default_rng(0), SMALL)
    for name in ("a.mkv", "b.mkv"):
        with write_video(tmp_path / name, 8) as write:
            write(clip)
    finished = run(
        *f"examples/contact_sheet.py --output {tmp_path}/sheet.png {tmp_path}/a.mkv {tmp_path}/b.mkv".split(),
        *"--columns 5".split(),
    )
    assert finished.returncode == 0, finished.stderr
    side, sheet = SMALL.side, read_image(tmp_path / "sheet.png")
    assert sheet.shape == (2 * side + 4, 5 * side + 4 * 4, 3)
    frames = np.stack([sheet[:side, i * (side + 4) : i * (side + 4) + side] for i in range(5)])
    assert read_scene(frames).objects[0].motion == "moves right"


@pytest.mark.parametrize("suffix", ["gif", "webp"])
def test_animated_contact_sheet_plays_videos_side_by_side(tmp_path, suffix):
    scenes_shown = [single("red", "circle", "blue", motion) for motion in ("moves right", "moves up", "grows")]
    for number, (scene, frames) in enumerate(zip(scenes_shown, (17, 17, 9))):
        with write_video(tmp_path / f"{number}.mkv", 8) as write:
            write(draw_clip(scene, np.random.default_rng(0), SMALL, frames))
    videos = [str(tmp_path / f"{number}.mkv") for number in range(3)]
    output = tmp_path / f"sheet.{suffix}"
    contact_sheet.main([*videos, "--output", str(output), "--animated", "--columns", "2"])
    with Image.open(output) as image:
        assert (image.size, image.n_frames, image.info["loop"]) == ((132, 132), 17, 0)
        shown = []
        for number in range(17):
            image.seek(number)
            shown.append(np.asarray(image.convert("RGB")))
            assert image.info["duration"] in (120, 125)  # a GIF counts hundredths of a second
    for scene, (row, column) in zip(scenes_shown, ((0, 0), (0, 1), (1, 0))):
        found = read_scene(np.stack(shown)[:, 68 * row : 68 * row + 64, 68 * column : 68 * column + 64])
        assert found is not None and found.objects == scene.objects and found.background == scene.background
    assert (np.stack(shown)[:, 76:, 76:] > 240).all()  # no fourth video
    with pytest.raises(UserError, match="choose from .gif, .webp"):
        contact_sheet.main([*videos, "--output", str(tmp_path / "sheet.png"), "--animated"])
    with write_video(tmp_path / "wide.mkv", 8) as write:
        write(np.zeros((3, 32, 64, 3), np.uint8))
    with pytest.raises(UserError, match="need one size, these have 64x32, 64x64"):
        contact_sheet.main([videos[0], str(tmp_path / "wide.mkv"), "--output", str(output), "--animated"])
