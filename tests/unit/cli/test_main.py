"""The console command: its table of verbs, its errors, and the published scripts that call the same functions."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys

import pytest
from command_parsers import ROOT, SCRIPTS, VERBS, parser_of
from processes import msrun

import opensora
from opensora.cli import main as cli

FLAG_SCRIPTS = {
    "opensora sample": "opensora/sample/sample.py",
    "opensora search-steps": "tools/search_steps.py",
    "opensora embed": "opensora/sample/sample_text_embed.py",
    "opensora refine": "opensora/sample/caption_refiner.py",
    "opensora train-t2v": "opensora/train/train_t2v_diffusers.py",
    "opensora train-inpaint": "opensora/train/train_inpaint.py",
    "opensora train-vae": "opensora/train/train_causalvae.py",
    "opensora train": "scripts/train.py",
    "opensora inference": "scripts/inference.py",
    "opensora inference-long": "scripts/inference-long.py",
    "opensora evaluate": "opensora/eval/eval.py",
    "opensora reconstruct video": "examples/rec_video.py",
    "opensora reconstruct image": "examples/rec_image.py",
    "opensora reconstruct folder": "examples/rec_video_folder.py",
    "opensora contact-sheet": "examples/contact_sheet.py",
    "opensora convert wfvae": "tools/model_conversion/convert_wfvae.py",
    "opensora convert torch": "tools/model_conversion/convert_pytorch_ckpt_to_safetensors.py",
    "opensora convert mindspore": "tools/model_conversion/convert_ms_to_safetensors.py",
    "opensora merge": "tools/ckpt/merge_safetensors.py",
    "opensora cast": "tools/ckpt/cast_safetensors.py",
    "opensora fuse-lora": "tools/ckpt/fuse_lora.py",
    "opensora extract-lora": "tools/ckpt/extract_lora.py",
    "opensora latent-scale": "tools/ckpt/set_latent_scale.py",
    "opensora plan": "opensora/cost_model/__main__.py",
    "opensora buckets": "opensora/datasets/bucketed/report.py",
}


def command(*arguments: str, **settings) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "opensora.cli", *arguments], cwd=ROOT, capture_output=True, text=True, **settings
    )


@pytest.mark.parametrize("arguments", [["--help"], []])
def test_help_lists_every_verb(capsys, arguments):
    cli.main(arguments)
    shown = capsys.readouterr().out
    assert all(f"  {verb.partition(' ')[2]}  " in shown for verb in VERBS)


def test_help_imports_nothing_heavy():
    program = "import sys; from opensora.cli.main import main; main(['--help']); print(*sys.modules)"
    finished = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(finished.stdout.splitlines()[-1].split())
    assert not loaded & {"mindspore", "numpy", "yaml", "transformers", "mmengine", "cv2"}


def test_version_is_printed():
    finished = command("--version")
    assert (finished.returncode, finished.stdout) == (0, f"opensora {opensora.__version__}\n")


@pytest.mark.parametrize(
    "arguments, error",
    [
        (["smaple"], "opensora has no command 'smaple'; did you mean sample?"),
        (["xyz", "--help"], "opensora has no command 'xyz'; opensora --help lists the commands"),
    ],
)
def test_unknown_verb_is_rejected(arguments, error):
    finished = command(*arguments)
    assert (finished.returncode, finished.stdout, finished.stderr) == (1, "", f"error: {error}\n")


def test_every_verb_has_a_function():
    for entry in cli.COMMANDS.values():
        module, _, function = entry.target.partition(":")
        assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize("verb", FLAG_SCRIPTS)
def test_script_and_verb_have_the_same_flags(verb):
    of_verb, of_script = ([vars(action) for action in parser_of(name)._actions] for name in (verb, FLAG_SCRIPTS[verb]))
    for flags in (of_verb, of_script):
        for flag in flags:
            flag.pop("container")
    assert [str(flag["option_strings"]) for flag in of_verb] == [str(flag["option_strings"]) for flag in of_script]
    assert [str(flag["default"]) for flag in of_verb] == [str(flag["default"]) for flag in of_script]
    assert parser_of(verb).prog == verb


def test_missing_flag_names_the_command():
    finished = command("cast", "-i", "a.safetensors")
    assert finished.returncode == 2
    assert finished.stderr.splitlines()[-1].startswith("opensora cast: error: the following arguments are required: -o")


def test_exit_status_of_a_failed_command(tmp_path):
    finished = command("cast", "-i", str(tmp_path / "none.safetensors"), "-o", str(tmp_path / "out.safetensors"))
    assert finished.returncode == 1 and finished.stdout == ""
    assert finished.stderr.startswith("error: ") and finished.stderr.count("\n") == 1


@pytest.mark.parametrize("script", ["opensora/sample/sample.py", "tools/ckpt/cast_safetensors.py"])
def test_script_of_a_clone_that_is_not_installed_says_what_to_do(script):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    # -S leaves out site-packages, so that an installed opensora is not found.
    finished = subprocess.run(
        [sys.executable, "-S", script, "--help"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert (finished.returncode, finished.stdout) == (1, "")
    assert "No module named 'opensora'" in finished.stderr and "pip install -e ." in finished.stderr
    assert finished.stderr.count("\n") == 1


def test_scripts_do_not_change_the_search_path():
    for script in SCRIPTS:
        if not script.startswith("benchmarks/"):
            assert "sys.path" not in (ROOT / script).read_text(), script


def test_verb_under_msrun(tmp_path):
    command = f"python -m opensora.cli cast -i {tmp_path}/none.safetensors -o {tmp_path}/out.safetensors".split()
    finished, logs = msrun(2, tmp_path / "logs", *command)
    assert finished.returncode != 0
    # msrun's scheduler runs the command too. Whichever process fails first, msrun may end the others before they
    # have reported their own error.
    errors = [log for log in (*logs, (tmp_path / "logs" / "scheduler.log").read_text()) if log]
    assert errors and all("ERROR in " in log and "none.safetensors" in log for log in errors)
    assert not any("Traceback" in log for log in errors)
