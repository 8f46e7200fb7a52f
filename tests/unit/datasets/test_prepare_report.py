"""The report of `opensora prepare`: what training leaves out and why, other flags, and contact sheets."""

from __future__ import annotations

import numpy as np
import pytest
from loader_checks import LettersTokenizer
from prepared import make_image, make_two_scenes, make_video, prepare, report

from opensora.datasets.media import read_image
from opensora.datasets.prepare.options import SelectionFlags
from opensora.datasets.prepare.selection import by_num_frames, count_used, explain, select_all, suggest
from opensora.datasets.prepare.sheets import draw_sheets
from opensora.datasets.t2v.dataset import T2VDataset
from opensora.datasets.t2v.entries import check_entry
from opensora.datasets.t2v.options import T2VDataOptions


def video(frames: int, size: tuple = (480, 640), fps: float = 24.0) -> dict:
    return check_entry(
        {
            "path": "a.mp4",
            "cap": "x",
            "resolution": {"height": size[0], "width": size[1]},
            "num_frames": frames,
            "fps": fps,
            "cut": [100, 100 + frames],
        }
    )


def image(size: tuple = (480, 640)) -> dict:
    return check_entry({"path": "a.png", "cap": "x", "resolution": {"height": size[0], "width": size[1]}})


FORCED = SelectionFlags(num_frames=29, force_resolution=True, max_height=256, max_width=256)


@pytest.mark.parametrize(
    "entry, flags, reason",
    [
        (video(31), SelectionFlags(), "too short: 31 frames at 24 fps, needs 65"),
        (video(100, fps=48.0), SelectionFlags(), "too short: 100 frames at 48 fps, which are 50 at 24 fps, needs 65"),
        (video(400), SelectionFlags(), "too long: 400 frames at 24 fps, at most 325"),
        (video(70, (200, 640)), SelectionFlags(), "too elongated: height x width 200x640, at most 2:1"),
        (video(70, (100, 640)), FORCED, "too elongated: height x width 100x640, at most 2:1 of 256:256"),
        (
            video(70, (96, 128)),
            SelectionFlags(),
            "fewer pixels than min_hxw: height x width 96x128, needs 25600 pixels after resizing",
        ),
        (image((30, 20)), SelectionFlags(), "smaller than hw_stride: height x width 30x20, needs 32 in both"),
        (image(), SelectionFlags(), "of a size with few samples: 1x256x352 has 1, needs 4 (--min_steps_per_size 4)"),
        (
            image(),
            SelectionFlags(total_batch_size=8),
            "of a size with few samples: 1x256x352 has 1, needs 32 (--min_steps_per_size 4)",
        ),
    ],
)
def test_reasons_have_the_numbers(entry, flags, reason):
    (found,) = select_all([entry], flags)
    assert explain(entry, found, flags) == reason


def test_report_is_what_training_does(tmp_path):
    """Samples of many lengths and sizes, one by one as in training."""
    clips = tmp_path / "clips"
    for number, frames in enumerate((5, 28, 29, 33, 60, 150)):
        make_video(clips / f"{number}.mp4", frames, "x")
    make_two_scenes(clips / "7.mp4", 31, 20, "x")
    for number in range(3):
        make_image(clips / f"{number}.png", "x")
    make_image(clips / "wide.png", "x", (32, 160))
    flags = dict(num_frames=29, max_hxw=64 * 96, min_hxw=1024, hw_stride=16)
    found = prepare(clips, *(text for name, value in flags.items() for text in (f"--{name}", value)))
    options = T2VDataOptions(
        str(clips / "prepared/data.txt"), cache_dir=str(tmp_path / "cache"), total_batch_size=1, **flags
    )
    dataset = T2VDataset(options, LettersTokenizer(), quiet=True)
    text = report(clips)
    assert dataset.index.table(4) in text
    lines = text.split("## Left out by these flags\n\n")[1].split("\n\n")[0].splitlines()
    assert lines == [
        "- 0.mp4: too short: 5 frames at 24 fps, needs 29",
        "- 0.png: of a size with few samples: 1x64x96 has 3, needs 4 (--min_steps_per_size 4)",
        "- 1.mp4: too short: 28 frames at 24 fps, needs 29",
        "- 1.png: of a size with few samples: 1x64x96 has 3, needs 4 (--min_steps_per_size 4)",
        "- 2.png: of a size with few samples: 1x64x96 has 3, needs 4 (--min_steps_per_size 4)",
        "- 5.mp4: too long: 150 frames at 24 fps, at most 145",
        "- 7.mp4, frames 31 to 50: too short: 20 frames at 24 fps, needs 29",
        "- wide.png: too elongated: height x width 32x160, at most 2:1",
    ]
    assert len(found) - len(lines) == len(dataset) == 4
    assert "- too long: 1; --max_seconds 6 of this command divides them" in text


def test_flags_that_use_more_are_suggested(tmp_path, capsys):
    clips = tmp_path / "clips"
    for number in range(4):
        make_video(clips / f"{number}.mp4", 33, "x")
    prepare(clips)
    shown = capsys.readouterr().out
    assert "samples used                                               0" in shown
    suggestion = "--num_frames 29 --max_hxw 102400 --min_hxw 1024"
    assert f"suggestion: {suggestion} uses 4 of 4" in shown
    prepare(clips, *suggestion.split())
    shown = capsys.readouterr().out
    assert "samples used                                               4" in shown and "suggestion" not in shown


def test_suggestion_changes_little():
    videos = [video(80)] * 20 + [video(31)]
    assert suggest(videos, SelectionFlags()).flags == SelectionFlags(), "nine of ten samples are enough"
    assert suggest([*videos, *[video(31)] * 9], SelectionFlags()).flags == SelectionFlags(num_frames=29)
    long = suggest([video(700)] * 8, SelectionFlags())
    assert long.used == 0, "no tried length is enough for these videos"
    sizes = [video(80, (480, 640)), video(80, (600, 640)), video(80, (640, 480)), video(80, (640, 640))]
    assert suggest(sizes, SelectionFlags()).flags.command_line() == (
        "--num_frames 65 --max_height 256 --max_width 352 --force_resolution"
    ), "one size for all"
    short = suggest([video(10)] * 8, SelectionFlags())
    assert short.flags.num_frames == 9 and short.used == 8, "shorter than the published models only if necessary"


def test_lengths_that_processes_cannot_share_are_not_tried():
    flags = SelectionFlags(num_frames=29, sp_size=4)
    assert [choice.flags.num_frames for choice in by_num_frames([video(80)] * 4, flags)] == [13, 29, 93]


def test_share_of_short_videos_is_that_of_training():
    entries = [video(40)] * 200
    flags = SelectionFlags(drop_short_ratio=0.5)
    used = count_used(select_all(entries, flags))
    assert 60 < used < 140 and used == count_used(select_all(entries, flags))


def test_contact_sheet_shows_first_middle_and_last_frame(tmp_path):
    clips = tmp_path / "clips"
    make_two_scenes(clips / "a.mkv", 20, 15, "two scenes")
    make_image(clips / "b.png", "an image")
    found = prepare(clips, "--sheet_pages", 10)
    page = clips / "prepared/contact_sheets/page-001.jpg"
    sheet = read_image(page).astype(int)
    assert sheet.shape == (3 * 156 + 2 * 4, 3 * 180 + 2 * 4, 3), "three rows of three frames with two lines of text"
    with_text = [sheet[row * 160 : row * 160 + 36] for row in range(3)]
    assert all((band < 100).any() for band in with_text)
    first_row, second_row, third_row = (sheet[row * 160 + 36 : row * 160 + 156] for row in range(3))
    assert (third_row[:, 192:] > 250).all(), "an image has one frame"
    assert np.abs(third_row[:, :180] - first_row[:, :180]).mean() > 20
    square = [
        np.flatnonzero((first_row[60, left : left + 180, 0] - first_row[60, left : left + 180, 1]) > 80)
        for left in (0, 184, 368)
    ]
    assert [places.mean() < limit for places, limit in zip(square, (60, 120, 180))] == [True] * 3
    assert square[0].mean() < square[1].mean() - 30 < square[2].mean() - 60, "the square moves right"
    before = page.stat().st_mtime_ns
    assert draw_sheets(page.parent, clips, found, 10) == 3 and page.stat().st_mtime_ns == before, "nothing has changed"
    (clips / "b.txt").write_text("another caption")
    prepare(clips, "--sheet_pages", 10)
    assert page.stat().st_mtime_ns > before


def test_number_of_pages_is_limited_and_stated(tmp_path, capsys):
    clips = tmp_path / "clips"
    for number in range(45):
        make_image(clips / f"{number:02}.png", size=(32, 32))
    prepare(clips, "--caption", "x", "--sheet_pages", 2)
    pages = clips / "prepared/contact_sheets"
    assert (
        len(list(pages.iterdir())) == 2
        and "contact_sheets, 40 of 45 samples (--sheet_pages)" in capsys.readouterr().out
    )
    prepare(clips, "--caption", "x", "--sheet_pages", 10)
    assert len(list(pages.iterdir())) == 3
    for number in range(10, 45):
        (clips / f"{number:02}.png").unlink()
    prepare(clips, "--caption", "x", "--sheet_pages", 1)
    assert [path.name for path in pages.iterdir()] == ["page-001.jpg"]
    prepare(clips, "--caption", "x", "--sheet_pages", 0)
    assert list(pages.iterdir()) == []


def test_long_sections_are_shortened_on_the_terminal(tmp_path, capsys):
    clips = tmp_path / "clips"
    for number in range(25):
        make_image(clips / f"{number:02}.png", size=(32, 32), caption="x" if number < 10 else "")
    prepare(clips)
    shown = capsys.readouterr().out
    assert f"... and 5 more, see {clips}/prepared/report.md" in shown
    assert report(clips).count(": no caption") == 15


def test_file_that_disappears_is_noted_on_the_sheet(tmp_path):
    gone = [{"path": "gone.png", "cap": "x", "resolution": {"height": 8, "width": 8}}]
    assert draw_sheets(tmp_path / "sheets", tmp_path, gone, 1) == 1
    assert (tmp_path / "sheets/page-001.jpg").is_file()
