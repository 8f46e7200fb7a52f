"""`opensora prepare`: from a folder of clips with captions to the files that training reads."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from ffmpeg_files import run_ffmpeg
from loader_checks import LettersTokenizer
from prepared import entries, make_image, make_two_scenes, make_video, prepare, report
from sample_clips import write_truncated_clip

from opensora.cli.prepare import main
from opensora.datasets import broken
from opensora.datasets.media import VideoReader
from opensora.datasets.prepare import run as prepare_run
from opensora.datasets.prepare.survey import survey
from opensora.datasets.t2v import probing
from opensora.datasets.t2v.dataset import T2VDataset
from opensora.datasets.t2v.options import T2VDataOptions
from opensora.errors import UserError

FLAGS = ("--num_frames", 29, "--force_resolution", "--max_height", 64, "--max_width", 96)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Clips of every kind; copied, because tests change them."""
    folder = tmp_path_factory.mktemp("made") / "clips"
    for number in range(4):
        make_video(folder / f"{number}.mp4", caption=f"clip {number}")
    make_two_scenes(folder / "sub/scenes.mkv", 40, 31, "two scenes")
    make_image(folder / "image.png", "an image")
    make_video(folder / "uncaptioned.mp4", 5)
    return folder


@pytest.fixture()
def clips(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "clips"))


def read_sample(clips: Path, number: int) -> dict:
    """A sample as training reads it."""
    options = T2VDataOptions(
        str(clips / "prepared/data.txt"),
        num_frames=29,
        force_resolution=True,
        max_height=64,
        max_width=96,
        cfg=0.0,
        model_max_length=64,
        cache_dir=str(clips.parent / "cache"),
    )
    return T2VDataset(options, LettersTokenizer(), quiet=True).item(number, np.random.default_rng(0))


def test_files_for_training_are_written(clips, capsys):
    found = prepare(clips, *FLAGS)
    assert [entry["path"] for entry in found] == [
        "0.mp4",
        "1.mp4",
        "2.mp4",
        "3.mp4",
        "image.png",
        "sub/scenes.mkv",
        "sub/scenes.mkv",
    ]
    size = {"height": 64, "width": 96}
    assert found[0] == {
        "path": "0.mp4",
        "cap": "clip 0",
        "resolution": size,
        "num_frames": 33,
        "fps": 24.0,
        "duration": 1.375,
        "cut": [0, 33],
    }
    assert found[4] == {"path": "image.png", "cap": "an image", "resolution": size}
    assert [entry["cut"] for entry in found[5:]] == [[0, 40], [40, 71]]
    assert [entry["num_frames"] for entry in found[5:]] == [40, 31]
    assert (clips / "prepared/data.txt").read_text() == f"{clips},{clips}/prepared/annotation.json\n"
    shown = capsys.readouterr().out
    assert "uncaptioned.mp4: no caption" in shown and f"--data {clips}/prepared/data.txt" in shown
    assert "sub/scenes.mkv: 2 scenes, from frames 0, 40" in shown


def test_dataset_reads_the_scenes(clips):
    """The frames of the second scene are those after the cut, wherever the clip begins."""
    prepare(clips, *FLAGS)
    with VideoReader(clips / "sub/scenes.mkv") as reader:
        frames = reader.read(range(71)).astype(np.float32) / 127.5 - 1
    for number, (start, end) in ((5, (0, 40)), (6, (40, 71))):
        sample = read_sample(clips, number)
        assert LettersTokenizer.text(sample["input_ids"]) == "two scenes" and sample["replaced"] == 0
        pixels = sample["pixels"].transpose(1, 2, 3, 0)
        assert len(pixels) == 29
        errors = [np.abs(frames[first : first + 29] - pixels).max() for first in range(start, end - 28)]
        assert min(errors) < 1e-5


def test_scene_cuts_may_be_ignored(clips):
    assert [entry["cut"] for entry in prepare(clips, "--scene_cuts", "False") if "sub" in entry["path"]] == [[0, 71]]
    assert "ignored" in report(clips)


def test_long_scenes_are_divided(clips):
    """1.2 seconds are 28 frames."""
    cuts = [entry["cut"] for entry in prepare(clips, "--max_seconds", 1.2) if "sub" in entry["path"]]
    assert cuts == [[0, 20], [20, 40], [40, 55], [55, 71]]


def test_rotated_video_is_upright(tmp_path):
    upright = make_video(tmp_path / "upright.mp4", caption="x")
    turned = tmp_path / "clips/turned.mp4"
    turned.parent.mkdir()
    run_ffmpeg("-display_rotation:v:0", 90, "-i", upright, "-c", "copy", turned)
    (entry,) = prepare(turned.parent, "--caption", "turned")
    assert entry["resolution"] == {"height": 96, "width": 64}
    assert "turned.mp4: transpose=" in report(turned.parent)


def test_long_video_reports_progress(tmp_path, monkeypatch):
    """The time limit of a file is that of 256 frames."""
    began = []
    monitor = broken.ReadMonitor()
    monitor.begin = began.append
    monkeypatch.setattr(broken, "monitor", monitor)
    path = str(make_video(tmp_path / "long.mp4", 520))
    assert survey(path).frames == 520 and began == [path, path]


def test_bad_files_are_listed_and_left_out(clips, capsys):
    (clips / "text.mp4").write_text("not a video")
    (clips / "text.jpg").write_text("not an image")
    write_truncated_clip(clips / "half.mp4")
    names = {entry["path"] for entry in prepare(clips, "--caption", "x")}
    assert not names & {"text.mp4", "text.jpg", "half.mp4"} and {"0.mp4", "uncaptioned.mp4"} <= names
    shown = capsys.readouterr().out
    assert "Cannot be read, left out:" in shown
    for reason in ("half.mp4: damaged: ", "text.jpg: cannot read this image", "text.mp4: not a readable video"):
        assert f"- {reason}" in report(clips) and reason in shown


def test_second_run_reads_only_new_files(clips, monkeypatch):
    prepare(clips)
    (clips / "1.mp4").unlink()
    (clips / "0.txt").write_text("another caption")
    make_video(clips / "new.mp4", 20, "new")
    read = []

    def record(paths, *arguments):
        read.extend(paths)
        return probing_read(paths, *arguments)

    probing_read = probing.read_files
    monkeypatch.setattr(probing, "read_files", record)
    captions = {entry["path"]: entry["cap"] for entry in prepare(clips)}
    assert read == [str(clips / "new.mp4")]
    assert captions["0.mp4"] == "another caption" and "1.mp4" not in captions and captions["new.mp4"] == "new"
    text = report(clips)
    assert "## Added since the last run\n\n- new.mp4\n" in text and "## Removed since the last run\n\n- 1.mp4\n" in text
    assert "## Captions changed since the last run\n\n- 0.mp4\n" in text
    os.utime(clips / "2.mp4", ns=(1, 1))
    prepare(clips)
    assert read[1:] == [str(clips / "2.mp4")], "changed files are read again"


def test_edits_of_the_annotation_are_kept_aside(clips):
    first = prepare(clips)
    annotation = clips / "prepared/annotation.json"
    unchanged = annotation.stat().st_mtime_ns
    assert prepare(clips) == first and annotation.stat().st_mtime_ns == unchanged
    edited = [{**entry, "cap": "edited"} for entry in first]
    annotation.write_text(json.dumps(edited))
    assert prepare(clips) == first
    assert json.loads((clips / "prepared/annotation.previous.json").read_text()) == edited
    assert "## Captions changed since the last run\n\n- 0.mp4" in report(clips)


def test_folder_of_embeddings_in_the_data_file_is_kept(clips):
    prepare(clips)
    data = clips / "prepared/data.txt"
    with_embeddings = f"{clips},/embeddings,{clips}/prepared/annotation.json\n"
    data.write_text(with_embeddings)
    prepare(clips)
    assert data.read_text() == with_embeddings
    data.write_text("/moved,/moved/prepared/annotation.json\n")
    prepare(clips)
    assert data.read_text() == f"{clips},{clips}/prepared/annotation.json\n"


def test_interrupted_run_keeps_the_former_annotation_and_what_was_read(clips, monkeypatch):
    former = prepare(clips)
    make_video(clips / "new.mp4", 20, "new")

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare_run, "make_entries", interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare(clips)
    assert entries(clips) == former
    monkeypatch.undo()
    monkeypatch.setattr(probing, "read_files", lambda paths, *_: [(path, pytest.fail(path)) for path in paths])
    assert len(prepare(clips)) == len(former) + 1


def test_contact_sheets_are_no_images_for_training(clips, tmp_path):
    count = len(prepare(clips, "--sheet_pages", 1))
    assert (clips / "prepared/contact_sheets/page-001.jpg").is_file()
    assert len(prepare(clips, "--caption", "x")) == count + 1, "the clip without a caption"
    main([str(clips), "--caption", "x", "--output", str(tmp_path)])
    assert len(prepare(tmp_path, "--caption", "x")) == count + 1, "the folder of results may have clips in a subfolder"


def test_output_may_be_elsewhere(clips, tmp_path):
    main([str(clips), "--output", str(tmp_path)])
    data = (tmp_path / "data.txt").read_text()
    assert data == f"{clips},{tmp_path}/annotation.json\n" and not (clips / "prepared").exists()


def test_names_that_are_not_utf8_are_kept(clips):
    name = os.fsdecode(b"caf\xe9.png")
    shutil.copy(clips / "image.png", clips / name)
    found = prepare(clips, "--caption", "x", *FLAGS)
    assert (
        name in [entry["path"] for entry in found]
        and "caf\\udce9.png" in (clips / "prepared/annotation.json").read_text()
    )


@pytest.mark.parametrize(
    "flags, message",
    [
        (["none"], "none: no such folder"),
        (["empty"], "empty: no videos or images in this folder"),
        (["clips", "--caption", " "], "--caption is empty"),
        (["clips", "--output", "clips"], "is the folder of the clips"),
        (["clips", "--output", "a,b"], "a data file cannot hold a path with a comma"),
        (["clips", "--caption", "x", "--output", "file"], "the output folder or its parent is a file"),
        (["clips", "--max_seconds", "0"], "--max_seconds 0: should be more than 0"),
        (["clips", "--sheet_pages", "-1"], "--sheet_pages -1"),
        (["clips", "--num_frames", "30"], "num_frames 30: should be 1 . a multiple of 4"),
        (["clips"], "none of 1 videos and images has a caption; write it to a.txt beside a.mp4"),
        (["clips", "--caption", "x"], "none of 1 videos and images with captions can be read; a.mp4: not a readable"),
    ],
)
def test_errors_are_one_line(flags, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("empty", "clips"):
        (tmp_path / folder).mkdir()
    (tmp_path / "clips/a.mp4").write_text("no video")
    (tmp_path / "file").write_text("")
    with pytest.raises((UserError, OSError), match=message) as error:
        main(flags)
    assert "\n" not in str(error.value)


def test_full_disk_is_one_line(clips, run):
    """A limit of the file size fails like a full disk: when data is written, without a file name."""
    prepare(clips)
    former = entries(clips)
    (clips / "0.txt").write_text("longer " * 200)
    program = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)); "
        "from opensora.cli.main import run; run('opensora.cli.prepare:main')"
    )
    finished = run("-c", program, clips, "--sheet_pages", 0)
    assert finished.returncode == 1 and finished.stderr.count("\n") == 1, finished.stderr
    assert f"error: {clips}/prepared: File too large; free some space" in finished.stderr
    assert entries(clips) == former
