"""The built package in an environment of its own, far from the repository."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
from processes import ROOT

pytestmark = pytest.mark.slow
MODEL = ROOT / "examples/demo_model"


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of the files that git lists, because a build leaves files in the folder of the sources."""
    folder = tmp_path_factory.mktemp("source")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a clone of the repository")
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file() and not name.startswith(("examples/", "tests/")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--wheel-dir", folder, source)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory) -> Path:
    """The interpreter of a new environment with the wheel, and with the dependencies that are installed here."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    packages = next(folder.glob("lib/python3*/site-packages"))
    # Python does not follow the .pth files in a folder that a .pth file names: no editable opensora is found there.
    (packages / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    pip("--python", folder / "bin/python", "install", "--no-deps", "--ignore-installed", wheel)
    return folder / "bin/python"


def pip(*arguments) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--quiet", *map(str, arguments)], check=True, timeout=900)


@pytest.fixture
def opensora(python, tmp_path):
    """Runs `opensora *arguments` in an empty folder, with an empty cache of kernels."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["XDG_CACHE_HOME"] = str(tmp_path / "cache")

    def run(*arguments) -> subprocess.CompletedProcess:
        command = [python.with_name("opensora"), *map(str, arguments)]
        finished = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
        assert finished.returncode == 0, finished.stderr
        return finished

    return run


def test_wheel_contains_what_runs(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "opensora/py.typed",
        "opensora/eval/script/cal_psnr.sh",
        "opensora/doctor/expected.json",
        "opensora/sample/sample.py",
    } <= names
    sources = {f"opensora/ops/cpu/src/{path.name}" for path in (ROOT / "opensora/ops/cpu/src").iterdir()}
    assert sources <= names
    assert all(name.startswith(("opensora/", "opensora_mindspore-")) for name in names)


def test_sdist_contains_the_repository(source, tmp_path):
    pip("install", "--target", tmp_path / "tools", "setuptools>=77")
    program = "from setuptools import build_meta; import sys; print(build_meta.build_sdist(sys.argv[1]))"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "tools")}
    command = [sys.executable, "-c", program, tmp_path]
    subprocess.run(command, cwd=source, env=environment, check=True, capture_output=True)
    archive = tarfile.open(next(tmp_path.glob("*.tar.gz")))
    names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"requirements.txt", "requirements/refiner.txt", "configs/open-sora-plan-v1-3/train/video.py"} <= names


def test_metadata_names_command_license_and_extras(python):
    program = """
from importlib.metadata import entry_points, metadata
found = metadata("opensora-mindspore")
print(found["License-Expression"], *sorted(found.get_all("Provides-Extra")))
print(found["Version"], *[line for line in found.get_all("Requires-Dist") if "mindspore==" in line])
"""
    finished = subprocess.run([python, "-I", "-c", program], capture_output=True, text=True, check=True)
    assert finished.stdout.splitlines() == ["Apache-2.0 decord dev docs refiner test", "0.1.0 mindspore==2.7.0"]


def test_help_and_version(opensora):
    assert "train-t2v" in opensora("--help").stdout
    assert opensora("--version").stdout.startswith("opensora 0.")


def test_kernels_are_built_from_the_installed_sources(opensora, tmp_path):
    library = Path(opensora("build-kernels").stdout.strip())
    assert library.parent == tmp_path / "cache/opensora" and library.is_file()


def test_video_is_made(opensora, tmp_path):
    flags = f"""--model_path {MODEL}/transformer --ae_path {MODEL}/vae --text_encoder_name_1 {MODEL}/text_encoder
        --save_img_path videos --num_frames 9 --height 64 --width 64 --num_sampling_steps 2 --guidance_scale 4
        --prediction_type v_prediction --rescale_betas_zero_snr --prompt_template {{}} --negative_prompt=
        --max_sequence_length 24 --device CPU""".split()
    finished = opensora("sample", *flags, "--text_prompt", "a red circle moves right on a blue background")
    assert "results in videos" in finished.stdout
    assert len(list((tmp_path / "videos").glob("*.mp4"))) == 1


def test_weights_are_converted(opensora, tmp_path):
    opensora("cast", "-i", MODEL / "vae/diffusion_pytorch_model.safetensors", "-o", "half.safetensors")
    opensora("convert", "torch", "--src", "half.safetensors", "--target", "out.safetensors", "--config", MODEL / "vae")
    assert (tmp_path / "out.safetensors").stat().st_size == (tmp_path / "half.safetensors").stat().st_size
