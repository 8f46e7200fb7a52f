"""PSNR and SSIM against the reference, and the command that compares folders of videos."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from golden_cases import case, given, load_case, relative_difference
from video_files import moving_image

from opensora.datasets.media import write_video
from opensora.eval.pairs import Pair, Sampling, frames_of_pair
from opensora.metrics import psnr, ssim


@pytest.fixture(scope="module")
def golden():
    """(real, generated) videos (B, T, C, H, W) in [0, 1] and the reference results."""
    inputs = case("metric_psnr_ssim", "training_cases.json")["inputs"]
    real = np.clip(0.5 + 0.2 * given("metric_psnr_ssim", "a", inputs["a"]["shape"]), 0, 1)
    generated = np.clip(real + 0.1 * given("metric_psnr_ssim", "b_delta", inputs["a"]["shape"]), 0, 1)
    generated[0, 0] = real[0, 0]
    return real, generated, load_case("metric_psnr_ssim")


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_metric_matches_reference(metric, golden):
    real, generated, expected = golden
    name = metric.__name__
    values = metric(real, generated)
    assert relative_difference(values, expected[f"{name}_image"]) < 1e-6
    assert relative_difference(values.mean(axis=0), expected[f"{name}_frame_mean"]) < 1e-6
    assert relative_difference(metric(real[1], generated[1]), expected[f"{name}_image"][1]) < 1e-6


def test_different_shapes_are_rejected():
    with pytest.raises(ValueError, match="equal shapes"):
        psnr(np.zeros((3, 16, 16)), np.zeros((3, 16, 24)))
    with pytest.raises(ValueError, match="equal shapes"):
        ssim(np.zeros((3, 16, 16)), np.zeros((3, 16, 24)))
    with pytest.raises(ValueError, match="11x11 at least, not 8x16"):
        ssim(np.zeros((3, 8, 16)), np.zeros((3, 8, 16)))


def psnr_of(pair: Pair, sampling: Sampling) -> np.ndarray:
    return np.concatenate([psnr(*frames) for frames in frames_of_pair(pair, sampling)])


@pytest.fixture
def folders(tmp_path):
    """real and gen: `same` in both, `noisy` with noise and another suffix, `odd` and `extra` in one folder only."""
    frames = moving_image(20)
    noise = np.random.default_rng(0).integers(-20, 21, frames.shape)
    noisy = np.clip(frames + noise, 0, 255).astype(np.uint8)
    for name, video in {
        "real/same.mp4": frames,
        "gen/same.mp4": frames,
        "real/noisy.mkv": frames,
        "gen/noisy.mp4": noisy,
        "real/odd.mp4": frames,
        "gen/extra.mp4": frames,
    }.items():
        with write_video(tmp_path / name, fps=10) as write:
            write(video)
    return tmp_path


def command(metric: str, folders: Path, real: str = "real") -> list[str]:
    program = f"opensora/eval/eval.py --metric {metric}".split()
    return [*program, "--real_video_dir", str(folders / real), "--generated_video_dir", str(folders / "gen")]


def score(output: str, name: str) -> float:
    return float(next(line for line in output.splitlines() if line.startswith(name)).split()[-1])


@pytest.mark.parametrize("metric, equal, least, most", [("psnr", 100, 24, 32), ("ssim", 1, 0.5, 0.9)])
def test_command_prints_scores_and_unpaired_files(metric, equal, least, most, folders, run):
    result = run(*command(metric, folders))
    assert result.returncode == 0, result.stderr
    assert score(result.stdout, "same.mp4") == equal
    assert least < score(result.stdout, "noisy.mp4") < most
    mean = (equal + score(result.stdout, "noisy.mp4")) / 2
    assert score(result.stdout, "mean of 2") == pytest.approx(mean, abs=1e-4)
    assert f"unpaired 2: {folders / 'real' / 'odd.mp4'}, {folders / 'gen' / 'extra.mp4'}" in result.stdout


def test_unreadable_pairs_are_skipped_and_counted(folders, corrupt_clip, run):
    (folders / "gen" / "odd.mp4").write_bytes(corrupt_clip.read_bytes())
    result = run(*command("psnr", folders), "--num_workers", 3)
    assert result.returncode == 0, result.stderr
    assert "mean of 2" in result.stdout and "skipped 1:" in result.stdout
    assert re.search(r"odd.mp4: damaged: \d+ frames can be read, its header promises 60", result.stdout)
    result = run(*command("psnr", folders), "--num_frames", 21)
    assert result.returncode == 1
    (error,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "none of 3 videos" in error and "21 frames needed, 20 can be read" in error


def test_folders_without_pairs_are_rejected(folders, run):
    (folders / "gen" / "same.mp4").rename(folders / "gen" / "other.mp4")
    (folders / "gen" / "noisy.mp4").unlink()
    result = run(*command("psnr", folders))
    assert result.returncode == 1
    assert result.stderr.startswith("error: no file name is in both") and result.stderr.count("\n") == 1
    result = run(*command("psnr", folders, real="absent"))
    assert result.returncode == 1 and "absent: no such folder" in result.stderr


def test_frames_are_sampled_and_resized(folders):
    """Every second frame of the real video against a generated video at half the frame rate."""
    pair = Pair(folders / "real" / "same.mp4", folders / "half.mp4")
    with write_video(pair.generated, fps=5) as write:
        write(moving_image(20)[np.linspace(0, 15, 8, dtype=int)])
    sampling = Sampling(num_frames=8, sample_rate=2, resolution=24, crop_size=16, batch_size=3)
    sizes = [real.shape for real, _ in frames_of_pair(pair, sampling)]
    assert sizes == [(3, 3, 16, 16), (3, 3, 16, 16), (2, 3, 16, 16)]
    assert psnr_of(pair, sampling).min() > 35
    assert psnr_of(pair, Sampling(num_frames=8, resolution=24)).min() < 25, "frames at different times"


def test_different_sizes_are_rejected(folders):
    pair = Pair(folders / "real" / "same.mp4", folders / "small.mp4")
    with write_video(pair.generated, fps=10) as write:
        write(moving_image(20)[:, ::2, ::2])
    with pytest.raises(ValueError, match="24x32, those of the real video 48x64; use --resolution"):
        psnr_of(pair, Sampling())
    assert psnr_of(pair, Sampling(resolution=16)).shape == (20,)


@pytest.mark.parametrize("metric", ["psnr", "ssim"])
def test_published_script_runs(metric, folders):
    script = Path(__file__).parents[3] / "opensora" / "eval" / "script" / f"cal_{metric}.sh"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    result = subprocess.run(
        ["bash", script, "real", "gen", "--subset_size", "1"],
        cwd=folders,
        text=True,
        capture_output=True,
        env={**os.environ, "PATH": path},
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "noisy.mp4" in result.stdout and "mean of 1" in result.stdout
