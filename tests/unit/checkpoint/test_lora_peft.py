"""PEFT and diffusers as referees of LoRA files: they load those of this project, and theirs are read here."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from lora_files import MODULES, random_lora
from processes import ROOT
from safetensors.numpy import load_file

from opensora.checkpoint.lora.files import LORA_NAME, LoRASettings, read_lora, read_settings, write_lora

PACKAGES = ("torch", "peft", "diffusers", "numpy")
LAYERS = {**MODULES, "transformer_blocks.10.attn1.to_q": (6, 5)}
FF = "transformer_blocks.1.ff.net.0.proj"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def referee(tmp_path_factory):
    """The program of an environment with PyTorch, PEFT and diffusers."""
    folder = tmp_path_factory.mktemp("peft")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    install = [folder / "bin/pip", "install", "--quiet", "--no-cache-dir", *PACKAGES]
    finished = subprocess.run(install, capture_output=True, text=True, timeout=1800)
    if finished.returncode:
        pytest.skip(f"pip cannot install {', '.join(PACKAGES)}: {finished.stderr.strip()[-300:]}")
    yield folder / "bin/python"
    shutil.rmtree(folder)  # gigabytes


@pytest.fixture(scope="module")
def judged(referee, tmp_path_factory):
    """A folder with a LoRA of this project, and all that tests/helpers/peft_referee.py made of it."""
    folder = tmp_path_factory.mktemp("judged")
    rng = np.random.default_rng(0)
    np.savez(folder / "weights.npz", **{name: rng.standard_normal(shape, np.float32) for name, shape in LAYERS.items()})
    np.savez(
        folder / "inputs.npz",
        **{name: rng.standard_normal((3, shape[1]), np.float32) for name, shape in LAYERS.items()},
    )
    settings = LoRASettings(2, 3.0, 0.0, ("to_q", "to_out.0", "net.0.proj", "net.2", "proj_out"))
    write_lora(folder / "ours" / LORA_NAME, ours(), settings)
    program = ROOT / "tests/helpers/peft_referee.py"
    finished = subprocess.run([referee, program, folder], capture_output=True, text=True, timeout=600)
    assert finished.returncode == 0, finished.stderr
    return folder


def ours():
    """Ranks 2 and 3, alphas 3 and 0.75."""
    return {**random_lora(2, 1.5, 1, LAYERS), FF: random_lora(3, 0.25, 2, LAYERS)[FF]}


@pytest.mark.parametrize("name", ["peft", "diffusers"])
def test_written_file_gives_the_same_outputs(judged, name):
    weights, inputs, found = (np.load(judged / f"{file}.npz") for file in ("weights", "inputs", name))
    for layer, low_rank in ours().items():
        weight = weights[layer].astype(np.float64) + low_rank.factor * low_rank.b.astype(np.float64) @ low_rank.a
        expected = inputs[layer] @ weight.T
        assert np.abs(found[layer] - expected).max() <= 1e-6 * np.abs(expected).max()


def test_written_file_has_no_missing_or_unexpected_keys(judged):
    report = json.loads((judged / "report.json").read_text())
    print(report)
    assert report["missing"] == report["unexpected"] == []


@pytest.mark.parametrize("name", ["trained", "rslora", "saved", "adapter"])
def test_files_of_peft_and_diffusers_are_read(judged, name):
    changes = np.load(judged / ("rslora.npz" if name == "rslora" else "trained.npz"))
    found = read_lora(judged / name, LAYERS)
    assert found.keys() == LAYERS.keys() and found[FF].rank == 7
    for layer, low_rank in found.items():
        assert low_rank.b.any()
        assert np.abs(low_rank.delta() - changes[layer]).max() <= 1e-6 * np.abs(changes[layer]).max()
    settings = read_settings(judged / name)
    assert (settings.rank, settings.alpha, settings.use_rslora) == (4, 6, name == "rslora")


def test_file_read_and_written_again_keeps_the_tensors(judged, tmp_path):
    saved = judged / "saved" / LORA_NAME
    write_lora(tmp_path / LORA_NAME, read_lora(saved, LAYERS), read_settings(saved))
    before, after = load_file(saved), load_file(tmp_path / LORA_NAME)
    assert before.keys() == after.keys() and all(np.array_equal(before[name], after[name]) for name in before)
    assert read_settings(tmp_path).rank_of(FF) == 7
