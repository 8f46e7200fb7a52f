"""Reconstruction of videos and images with a small VAE: the functions, and the commands of examples/."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from golden_cases import case
from PIL import Image
from sample_clips import write_clip, write_truncated_clip
from video_files import difference, moving_image

from opensora.datasets.media import VideoReader, read_image, write_video
from opensora.datasets.transforms import to_float, to_uint8
from opensora.metrics import psnr, ssim
from opensora.models import WFVAEModel, get_vae
from opensora.pipelines.reconstruct import (
    ClipSpec,
    Reconstructor,
    read_clip,
    read_image_clip,
    reconstruct_image,
    reconstruct_video,
)
from opensora.pipelines.reconstruct_folder import Results, plan_tasks, reconstruct_folder, settings_of
from opensora.utils.folder_lock import exclusive_folder

AE = "WFVAEModel_D8_4x8x8"
EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.fixture(scope="module")
def ae_path(tmp_path_factory):
    """A folder with a small VAE of 8 latent channels and random weights."""
    folder = tmp_path_factory.mktemp("vae")
    config = case("wfvae_ln_tiny")["config"]
    WFVAEModel(**config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def reconstruct(ae_path):
    return Reconstructor(get_vae(AE, ae_path))


@pytest.fixture
def videos(tmp_path):
    """Three valid videos, one of a different size in a subfolder, and one that is too short."""
    for name, frames in {
        "a.mp4": moving_image(12),
        "b.mp4": moving_image(12)[:, ::-1],
        "below/c.mkv": moving_image(12, 40, 80),
        "short.mp4": moving_image(3),
    }.items():
        with write_video(tmp_path / "videos" / name, fps=10) as write:
            write(frames)
    return tmp_path / "videos"


def levels(video: np.ndarray) -> np.ndarray:
    """(3, T, H, W) -> uint8 (T, H, W, 3)."""
    return to_uint8(video.transpose(1, 2, 3, 0), "half_even")


@pytest.mark.parametrize(
    "sizes, message",
    [
        ({"num_frames": 16}, r"--num_frames must be 4n\+1 for WFVAEModel_D8_4x8x8, not 16: use 13 or 17"),
        ({"num_frames": 0}, "not 0: use 1 or 5"),
        ({"num_frames": 9, "height": 100}, "--height must be a multiple of 8, not 100: use 96 or 104"),
        ({"num_frames": 9, "width": 3}, "--width must be a multiple of 8, not 3: use 16 or 24"),
        ({"num_frames": 9, "height": None}, "--height and --width require each other"),
        ({"num_frames": 9, "sample_rate": 0}, "--sample_rate must be 1 or more, not 0"),
        (
            {"num_frames": 9, "height": None, "width": None, "resolution": 64, "crop_size": 72},
            "--resolution must be 72 or more, not 64",
        ),
    ],
)
def test_unsupported_sizes_are_rejected(sizes, message):
    with pytest.raises(ValueError, match=message):
        ClipSpec(**{"height": 64, "width": 64, **sizes}).check(AE)


def test_unknown_vae_is_rejected():
    with pytest.raises(ValueError, match="'WFVAE' is not one of .*WFVAEModel_D8_4x8x8"):
        ClipSpec(9, height=64, width=64).check("WFVAE")


@pytest.mark.parametrize(
    "clip, size",
    [
        (ClipSpec(5, height=32, width=48), (32, 48)),
        (ClipSpec(5, resolution=50), (48, 64)),
        (ClipSpec(5, resolution=40, crop_size=32), (32, 32)),
    ],
)
def test_read_clip_resizes(clip, size, videos):
    video = read_clip(videos / "a.mp4", clip, AE)
    assert video.shape == (3, 5, *size) and video.dtype == np.float32
    assert -1 <= video.min() < -0.5 and 0.5 < video.max() <= 1


def test_sample_rate_selects_evenly_spaced_frames(videos):
    """4 of 12 frames at sample rate 3 are 0, 3, 7, 11, as published: evenly spaced from the first to the last."""
    clip = ClipSpec(4, sample_rate=3, height=48, width=64)
    frames = levels(read_clip(videos / "a.mp4", clip, AE))
    assert difference(frames, moving_image(12)[[0, 3, 7, 11]]) < 8


def test_scores_match_the_decoded_frames(reconstruct, videos, tmp_path):
    video = read_clip(videos / "a.mp4", ClipSpec(9, height=48, width=64), AE)
    scores = reconstruct_video(reconstruct, video, tmp_path / "rec.mp4", fps=10)
    assert reconstruct.encode_seconds > 0 and reconstruct.decode_seconds > 0

    decoded = reconstruct.vae.decode(reconstruct.vae.encode(ms.Tensor(video[None])).mode()).asnumpy()[0]
    frames = to_uint8(decoded)  # (3, T, H, W)
    originals = np.rint((video + 1) * 127.5).astype(np.uint8)
    a, b = (np.swapaxes(x, 0, 1) / 255 for x in (originals, frames))
    assert scores["psnr"] == pytest.approx(psnr(a, b).mean(), rel=1e-4)
    assert scores["ssim"] == pytest.approx(ssim(a, b).mean(), rel=1e-4)
    with VideoReader(tmp_path / "rec.mp4") as reader:
        assert len(reader) == 9
        # Random weights give noise, of which H.264 preserves mainly the luma.
        luma = np.array([0.299, 0.587, 0.114])
        written, expected = reader.read(range(9)) @ luma, frames.transpose(1, 2, 3, 0) @ luma
        assert np.corrcoef(written.ravel(), expected.ravel())[0, 1] > 0.95


def test_tiling_does_not_change_the_result(reconstruct):
    video = to_float(moving_image(17, 16, 16).transpose(3, 0, 1, 2))[None]
    whole = list(reconstruct(video))
    reconstruct.vae.enable_tiling(True)
    pieces = list(reconstruct(video))
    reconstruct.vae.enable_tiling(False)
    assert len(whole) == 1 and len(pieces) > 1
    assert np.abs(np.concatenate(pieces, axis=1).astype(int) - whole[0]).max() <= 1


def test_image_is_reconstructed(reconstruct, tmp_path):
    image = Image.fromarray(moving_image(1, 50, 75)[0]).convert("RGBA")
    image.save(tmp_path / "image.png")
    clip = read_image_clip(tmp_path / "image.png", 32, AE)
    assert clip.shape == (3, 1, 32, 48)
    scores = reconstruct_image(reconstruct, clip, tmp_path / "rec.png")
    written = read_image(tmp_path / "rec.png")
    a, b = (frame.transpose(2, 0, 1) / 255 for frame in (levels(clip)[0], written))
    assert scores["psnr"] == pytest.approx(float(psnr(a, b)), rel=1e-4)
    with pytest.raises(ValueError, match="--short_size must be 16 or more, not 7"):
        read_image_clip(tmp_path / "image.png", 7, AE)


CLIP = ClipSpec(5, resolution=32, crop_size=32)


def run_folder(reconstruct, videos, target, clip=CLIP, **options):
    tasks = plan_tasks(videos, target, output_origin=True)
    results = Results(target, settings_of(clip, AE, "weights"))
    skipped = reconstruct_folder(reconstruct, tasks, clip, AE, results, 10, **options)
    return results.table(tasks), skipped


def test_folder_is_reconstructed(reconstruct, videos, tmp_path):
    target = tmp_path / "rec"
    scores, skipped = run_folder(reconstruct, videos, target, num_workers=2)
    assert list(scores) == ["a.mp4", "b.mp4", "c.mkv"]
    assert list(skipped) == ["short.mp4"] and "5 frames needed, 3 can be read" in skipped["short.mp4"]
    for name in scores:
        with VideoReader(target / name) as rec, VideoReader(target / "origin" / name) as origin:
            assert len(rec) == len(origin) == 5 and (rec.height, rec.width, rec.fps) == (32, 32, 10)
            if name == "a.mp4":
                expected = levels(read_clip(videos / "a.mp4", CLIP, AE))
                assert difference(origin.read(range(5)), expected) < 8

    together, _ = run_folder(reconstruct, videos, tmp_path / "together", batch_size=2)
    for name, row in scores.items():
        assert together[name] == pytest.approx(row, rel=1e-4), "batching does not change the scores"


def test_second_run_processes_only_missing_videos(reconstruct, videos, tmp_path):
    target = tmp_path / "rec"
    first, _ = run_folder(reconstruct, videos, target)
    written = {name: (target / name).stat().st_mtime_ns for name in first}
    (target / "b.mp4").unlink()
    second, skipped = run_folder(reconstruct, videos, target)
    assert list(second) == list(first) and list(skipped) == ["short.mp4"]
    assert second["a.mp4"] == first["a.mp4"] and second["b.mp4"] == pytest.approx(first["b.mp4"], rel=1e-4)
    again = [name for name in first if (target / name).stat().st_mtime_ns != written[name]]
    assert again == ["b.mp4"]
    with pytest.raises(ValueError, match="num_frames=5, not 9: choose another --generated_video_dir"):
        run_folder(reconstruct, videos, target, clip=ClipSpec(9, resolution=32, crop_size=32))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        '{"settings": {}',
        '{"settings": 1, "videos": {}}',
        "[" * 100000,
        '{"settings": {}, "videos": [1]}',
        "\ufeff",
        "null",
    ],
)
def test_unreadable_record_is_reported_and_replaced(text, tmp_path, capsys):
    (tmp_path / "reconstruction.json").write_text(text, encoding="utf-8")
    (tmp_path / "reconstruction_of_others.json").write_text("[]")
    results = Results(tmp_path, {"ae": AE})
    assert not results.earlier and "reconstruction.json holds no settings and scores" in capsys.readouterr().err
    results.add({"a.mp4": {"psnr": 30.0, "ssim": 0.5}})
    assert Results(tmp_path, {"ae": AE}).earlier == results.written


def test_unreadable_scores_are_reported(tmp_path, capsys):
    good = {"psnr": 30.0, "ssim": 0.5}
    videos = {
        "a.mp4": good,
        "b.mp4": {},
        "c.mp4": {"psnr": 1.0},
        "d.mp4": {**good, "ssim": float("nan")},
        "e.mp4": None,
    }
    (tmp_path / "reconstruction.rank1.json").write_text(json.dumps({"settings": {"ae": AE}, "videos": videos}))
    assert Results(tmp_path, {"ae": AE}).earlier == {"a.mp4": good}
    assert "reconstruction.rank1.json holds no valid scores of b.mp4, c.mp4, d.mp4, e.mp4" in capsys.readouterr().err


def test_batch_has_one_size(reconstruct, videos, tmp_path):
    """Without a crop the third video has a different shape."""
    scores, _ = run_folder(reconstruct, videos, tmp_path / "rec", clip=ClipSpec(5, resolution=32), batch_size=3)
    assert len(scores) == 3
    sizes = {}
    for name in scores:
        with VideoReader(tmp_path / "rec" / name) as reader:
            sizes[name] = (reader.height, reader.width)
    assert sizes == {"a.mp4": (32, 40), "b.mp4": (32, 40), "c.mkv": (32, 64)}


def test_plan_tasks_maps_sources_to_targets(videos, tmp_path):
    listing = tmp_path / "list.csv"
    listing.write_text("video,note\nbelow/c.mkv,x\nabsent.webm,y\n")
    tasks = plan_tasks(videos, tmp_path / "rec", listing)
    assert [(task.source, task.target.name) for task in tasks] == [
        (videos / "below" / "c.mkv", "c.mkv"),
        (videos / "absent.webm", "absent.mp4"),
    ]
    assert [task.name for task in plan_tasks(videos, tmp_path / "rec", subset_size=2)] == ["a.mp4", "b.mp4"]
    listing.write_text("path\na.mp4\n")
    with pytest.raises(ValueError, match="needs a column 'video', has path"):
        plan_tasks(videos, tmp_path / "rec", listing)
    listing.write_text("video\na.mp4\nbelow/a.mp4\n")
    with pytest.raises(ValueError, match="would both be written to"):
        plan_tasks(videos, tmp_path / "rec", listing)
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        plan_tasks(tmp_path / "nowhere", tmp_path / "rec")


def test_rec_video_command_writes_original_and_reconstruction(ae_path, run, tmp_path):
    source = write_clip(tmp_path / "clip.mkv")
    result = run(
        "examples/rec_video.py",
        *f"--ae {AE} --ae_path {ae_path} --device CPU --num_frames 9 --video_path {source}".split(),
        *f"--rec_path {tmp_path}/out/rec.mp4 --height 48 --width 64 --sample_rate 2 --fps 15".split(),
        *"--enable_tiling --grid".split(),
    )
    assert result.returncode == 0, result.stderr
    assert "encode" in result.stdout and "PSNR" in result.stdout and "SSIM" in result.stdout
    with VideoReader(tmp_path / "out" / "rec.mp4") as reader:
        assert (len(reader), reader.height, reader.width, reader.fps) == (9, 48, 128, 15)
        frames = reader.read(range(9))
    clip = ClipSpec(9, sample_rate=2, height=48, width=64)
    originals = levels(read_clip(source, clip, AE))
    assert difference(frames[:, :, :64], originals) < 10, "the original is on the left"


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--num_frames", 10], "use 9 or 13"),
        (["--rec_path", "rec.xyz"], "rec.xyz: cannot write .xyz; choose from .mp4"),
        (["--video_path", "absent.mp4"], "absent.mp4: no such file"),
    ],
)
def test_rec_video_errors_precede_loading(flags, message, videos, monkeypatch, capsys):
    arguments = {
        "--video_path": videos / "a.mp4",
        "--rec_path": videos / "rec.mp4",
        "--ae_path": "no/weights/here",
        "--num_frames": 9,
        "--height": 48,
        "--width": 64,
        flags[0]: flags[1],
    }
    monkeypatch.setattr(sys, "argv", ["rec_video.py", *[str(word) for pair in arguments.items() for word in pair]])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(EXAMPLES / "rec_video.py"), run_name="__main__")
    error = capsys.readouterr().err
    assert end.value.code == 1 and error.startswith("error: ") and error.count("\n") == 1
    assert message in error and not (videos / "rec.mp4").exists()


def test_rec_video_folder_command_reports_skipped_videos(ae_path, run, videos, tmp_path):
    write_truncated_clip(videos / "corrupted.mp4")
    result = run(
        "examples/rec_video_folder.py",
        *f"--ae {AE} --ae_path {ae_path} --device CPU --real_video_dir {videos}".split(),
        *f"--generated_video_dir {tmp_path}/rec --num_frames 5 --height 32 --width 48 --sample_fps 20".split(),
        *"--output_origin --batch_size 2".split(),
    )
    assert result.returncode == 0, result.stderr
    assert "mean of 3" in result.stdout and "skipped 2:" in result.stdout
    assert re.search(r"corrupted.mp4: damaged: \d+ frames can be read", result.stdout)
    assert "short.mp4: 5 frames needed, 3 can be read" in result.stdout
    assert sorted(path.name for path in (tmp_path / "rec" / "origin").iterdir()) == ["a.mp4", "b.mp4", "c.mkv"]


def test_folder_in_use_is_rejected(run, videos):
    with exclusive_folder(videos / "rec"):
        finished = run(
            "examples/rec_video_folder.py",
            *f"--ae_path no/weights/here --real_video_dir {videos} --generated_video_dir {videos}/rec".split(),
            *"--num_frames 5 --device CPU".split(),
        )
    assert finished.returncode == 1 and "another run writes to this folder" in finished.stderr


def test_rec_image_command_writes_an_image(ae_path, run, tmp_path):
    Image.fromarray(moving_image(1, 60, 90)[0]).save(tmp_path / "image.jpg")
    result = run(
        "examples/rec_image.py",
        *f"--ae {AE} --ae_path {ae_path} --device CPU --short_size 48 --image_path {tmp_path}/image.jpg".split(),
        *f"--rec_path {tmp_path}/rec.jpg".split(),
    )
    assert result.returncode == 0, result.stderr
    assert "PSNR" in result.stdout and read_image(tmp_path / "rec.jpg").shape == (48, 72, 3)
