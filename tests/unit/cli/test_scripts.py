"""The published scripts: the commands that they compose, and how they start and end processes."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from command_parsers import ROOT, parser_of

from opensora.train.t2v_options import parse_options

TEXT = "scripts/text_condition"
VAE = "scripts/causalvae"
MULTI_DEVICE = [
    str(path.relative_to(ROOT))
    for folder in (f"{TEXT}/multi-devices", f"{TEXT}/npu", f"{VAE}/multi-devices")
    for path in sorted((ROOT / folder).glob("*.sh"))
    if path.name != "launch_training.sh"
]
SINGLE_DEVICE = [
    str(path.relative_to(ROOT))
    for folder in (f"{TEXT}/single-device", f"{VAE}/single-device", "scripts/embedding_cache")
    for path in sorted((ROOT / folder).glob("*.sh"))
    if path.name != "eval.sh"
]
REQUIRED = {
    "REAL": "videos",
    "IMAGE": "a.png",
    "VIDEO": "a.mp4",
    "CAPTIONS": "captions.json",
    "OUTPUT": "results",
    "NODES": "1",
    "NODE_RANK": "0",
    "MASTER_ADDR": "10.0.0.1",
}


@pytest.fixture
def stubs(tmp_path, monkeypatch):
    """Programs in place of msrun and python that print their command line."""
    folder = tmp_path / "stubs"
    folder.mkdir()
    for name in ("msrun", "python"):
        (folder / name).write_text(f"#!/bin/bash\nprintf '%q ' {name} \"$@\"\necho\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    for name in ("WORKERS", "LAUNCH", "DEVICE", "NODES", "NODE_RANK", "OUTPUT", "WEIGHTS", "PRETRAINED", "SPARSE1D"):
        monkeypatch.delenv(name, raising=False)
    return folder


def composed(script: str, *flags: str, **variables: str) -> list[str]:
    """The command line that a script composes."""
    finished = subprocess.run(
        ["bash", script, *flags], cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True, timeout=20
    )
    assert finished.returncode == 0, finished.stderr
    (line,) = finished.stdout.splitlines()
    return shlex.split(line)


def split(command: list[str]) -> tuple[dict, str, list[str]]:
    """Flags of msrun (empty for python), the command's file and its flags."""
    place = next(i for i, word in enumerate(command) if word.endswith(".py"))
    assert command[0] == "python"
    if command[1:3] != ["-m", "opensora.launch"]:
        return {}, command[place], command[place + 1 :]
    launcher = dict(word.lstrip("-").split("=", 1) for word in command[3:place])
    return launcher, command[place], command[place + 1 :]


def parsed(command: list[str]):
    """The values of a composed command's flags, as its own parser reads them and its --config file sets them."""
    _, file, flags = split(command)
    parser = parser_of(file)
    if "--config" in flags:
        parser.set_defaults(**yaml.safe_load((ROOT / flags[flags.index("--config") + 1]).read_text()))
        for action in parser._actions:
            action.required = False
    return parser.parse_args(flags)


@pytest.mark.parametrize("script", [*SINGLE_DEVICE, *MULTI_DEVICE])
def test_every_flag_is_one_of_the_command(stubs, script):
    command = composed(script, **REQUIRED)
    args = parsed(command)
    launcher, _, _ = split(command)
    assert bool(launcher) == (script in MULTI_DEVICE) == args.use_parallel
    assert args.device == "Ascend"


@pytest.mark.parametrize("script", MULTI_DEVICE)
def test_number_of_processes(stubs, script):
    assert split(composed(script, **REQUIRED))[0]["worker_num"] == "8"
    for flags, variables in (
        (["--nproc_per_node", "4"], {}),
        (["--nproc_per_node=4"], {}),
        (["--nproc-per-node=4"], {}),
        ([], {"WORKERS": "4"}),
        (["--nproc_per_node", "4"], {"WORKERS": "2"}),
    ):
        command = composed(script, *flags, "--seed", "7", **{**REQUIRED, **variables})
        launcher, _, rest = split(command)
        assert launcher["worker_num"] == launcher["local_worker_num"] == "4"
        assert "nproc" not in " ".join(rest) and rest[-2:] == ["--seed", "7"]
        assert launcher["log_dir"] == "results/parallel_logs"
        if "--sp_size" in rest:
            assert rest[rest.index("--sp_size") + 1] == "4"
    failed = subprocess.run(
        ["bash", script, "--nproc_per_node", "many"],
        cwd=ROOT,
        env={**os.environ, **REQUIRED},
        capture_output=True,
        text=True,
    )
    assert failed.returncode == 2 and failed.stdout == ""
    assert (
        failed.stderr == "error: --nproc_per_node many: should be the number of processes on this machine, 1 or more\n"
    )


def test_a_single_device_script_can_run_on_several(stubs):
    launcher, _, rest = split(composed(f"{TEXT}/single-device/train_t2v_stage3.sh", "--nproc_per_node", "2"))
    assert launcher["worker_num"] == "2" and rest[:2] == ["--use_parallel", "True"]
    assert "--zero_stage 2" in " ".join(rest)


@pytest.mark.parametrize(
    "script, single_device, added",
    [
        (f"{TEXT}/multi-devices/sample_t2v_93x640_ddp.sh", "sample_t2v_93x640.sh", ()),
        (f"{TEXT}/multi-devices/sample_t2v_93x640_sp.sh", "sample_t2v_93x640.sh", ("--sp_size", "8")),
        *(
            (f"{TEXT}/{folder}/sample_inpaint_v1_3{suffix}.sh", "sample_inpaint_v1_3.sh", added)
            for folder, suffix, added in (
                ("multi-devices", "_ddp", ()),
                ("multi-devices", "_sp", ("--sp",)),
                ("npu", "", ()),
                ("gpu", "", ()),
            )
        ),
        (f"{TEXT}/npu/train_inpaint_v1_3.sh", "train_inpaint_v1_3.sh", ()),
        (f"{TEXT}/gpu/train_inpaint_v1_3.sh", "train_inpaint_v1_3.sh", ()),
        (f"{TEXT}/multi-devices/train_t2i_stage1.sh", "train_t2i_stage1.sh", ()),
        (
            f"{TEXT}/multi-devices/train_t2v_stage2.sh",
            "train_t2v_stage2.sh",
            ("--sp_size", "8", "--train_sp_batch_size", "1"),
        ),
        (f"{TEXT}/multi-devices/train_t2v_stage3.sh", "train_t2v_stage3.sh", ()),
        (f"{TEXT}/multi-devices/train_t2v_stage3_multi_node.sh", "train_t2v_stage3.sh", ("--sp_size", "8")),
    ],
)
def test_settings_agree_with_the_single_device_script(stubs, script, single_device, added):
    """The scripts repeat the published settings, so that each of them shows its own."""
    variables = {"DEVICE": "Ascend", "NODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1", "SPARSE1D": "True"}
    expected = composed(f"{TEXT}/single-device/{single_device}", "--nproc_per_node", "8", *added, **variables)
    assert composed(script, **variables) == expected


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_vae_settings_agree_with_the_single_device_script(stubs, stage):
    number = "" if stage == 1 else f"_stage{stage}"
    expected = composed(f"{VAE}/single-device/train{number}.sh", "--nproc_per_node", "8")
    for name in (f"train{number}.sh", f"train_stage_{stage}.sh"):
        assert composed(f"{VAE}/multi-devices/{name}") == expected


@pytest.mark.parametrize("name", ["train_t2v_stage2.sh", "train_inpaint_v1_3.sh"])
def test_launch_training_takes_the_name_of_a_script(stubs, name):
    expected = composed(f"{TEXT}/single-device/{name}", "--nproc_per_node", "4", "--seed", "7")
    assert composed(f"{TEXT}/multi-devices/launch_training.sh", name, "--seed", "7", WORKERS="4") == expected


@pytest.mark.parametrize("script", [*SINGLE_DEVICE, *MULTI_DEVICE])
def test_scripts_use_no_script_but_the_launcher(script):
    code = [line for line in (ROOT / script).read_text().splitlines() if not line.startswith("#")]
    assert [line.split("/")[-1] for line in code if ".sh" in line] in ([], ['_launch.sh"'])


def test_several_machines(stubs):
    launcher, _, rest = split(
        composed(
            f"{TEXT}/multi-devices/train_t2v_stage3_multi_node.sh",
            NODES="4",
            NODE_RANK="3",
            MASTER_ADDR="10.0.0.1",
            PORT="9100",
            OUTPUT="/shared",
        )
    )
    assert launcher == {
        "bind_core": "True",
        "worker_num": "32",
        "local_worker_num": "8",
        "master_addr": "10.0.0.1",
        "master_port": "9100",
        "node_rank": "3",
        "log_dir": "/shared/parallel_logs_3",
        "join": "True",
    }
    assert rest[rest.index("--sp_size") + 1] == "8"


@pytest.mark.parametrize("folder", ["single-device", "multi-devices"])
def test_published_stages_of_the_diffusion_model(stubs, folder):
    """The published table: resolution, frames, steps, learning rate, attention; ZeRO 2, in stage 2 with sp_size 8."""
    dense = parsed(composed(f"{TEXT}/{folder}/train_t2i_stage1.sh"))
    sparse = parsed(composed(f"{TEXT}/{folder}/train_t2i_stage1.sh", SPARSE1D="True"))
    stage2 = parsed(composed(f"{TEXT}/{folder}/train_t2v_stage2.sh"))
    stage3 = parsed(composed(f"{TEXT}/{folder}/train_t2v_stage3.sh"))
    assert [args.max_train_steps for args in (dense, sparse, stage2, stage3)] == [150_000, 100_000, 200_000, 200_000]
    assert [args.start_learning_rate for args in (dense, sparse, stage2, stage3)] == [2e-5, 2e-5, 2e-5, 1e-5]
    assert [args.sparse1d for args in (dense, sparse, stage2, stage3)] == [False, True, True, True]
    assert [args.num_frames for args in (dense, stage2, stage3)] == [1, 93, 93]
    assert (dense.max_height, dense.max_width, dense.force_resolution) == (256, 256, True)
    assert (stage2.max_hxw, stage2.force_resolution) == (640 * 640, False)
    assert (stage3.max_height, stage3.max_width, stage3.force_resolution) == (352, 640, True)
    for args in (dense, sparse, stage2, stage3):
        assert (args.sparse_n, args.snr_gamma, args.train_fps, args.cfg, args.ema_decay) == (4, 5.0, 16, 0.1, 0.9999)
        assert (args.prediction_type, args.rescale_betas_zero_snr, args.precision) == ("v_prediction", True, "bf16")
        assert args.zero_stage == (2 if folder == "multi-devices" else None)
    assert [args.sp_size for args in (dense, stage2, stage3)] == [1, 8 if folder == "multi-devices" else 1, 1]
    assert all(Path(ROOT, args.data).is_file() for args in (dense, stage2, stage3))


@pytest.mark.parametrize(
    "script, stage, expected",
    [
        ("v1_0", "17x256x256", dict(num_frames=17, max_image_size=256, train_batch_size=4, use_image_num=4)),
        ("v1_0", "65x512x512", dict(num_frames=65, max_image_size=512, train_batch_size=2, use_image_num=16)),
        ("v1_1", "65x512x512", dict(num_frames=65, max_image_size=512, train_batch_size=2, use_image_num=4)),
        ("v1_1", "221x512x512", dict(num_frames=221, sp_size=8, train_batch_size=1, use_image_num=4)),
        ("v1_2", "1x320x240", dict(num_frames=1, max_height=240, max_width=320, max_train_steps=146_000)),
        ("v1_2", "29x640x480", dict(num_frames=29, max_height=480, sp_size=8, train_sp_batch_size=2)),
        ("v1_2", "93x1280x720", dict(num_frames=93, max_width=1280, max_train_steps=3_000, train_batch_size=1)),
    ],
)
def test_published_stages_of_older_generations(stubs, monkeypatch, script, stage, expected):
    command = composed(f"{TEXT}/npu/train_{script}.sh", STAGE=stage)
    args = parsed(command)
    shared = dict(start_learning_rate=1e-4, snr_gamma=5.0, noise_offset=0.02, ema_decay=0.999, cfg=0.1)
    if script != "v1_2":
        shared = dict(start_learning_rate=2e-5, use_ema=False, cfg=0.0, model_max_length=300, max_train_steps=1_000_000)
    assert {name: getattr(args, name) for name in {**shared, **expected}} == {**shared, **expected}
    on_gpu = parsed(composed(f"{TEXT}/gpu/train_{script}.sh", STAGE=stage, DEVICE="CPU"))
    different = {name for name, value in vars(args).items() if value != getattr(on_gpu, name)}
    assert different <= {"device", "tile_overlap_factor"}
    monkeypatch.chdir(ROOT)
    parse_options(split(command)[2])  # which checks that the settings agree


@pytest.mark.parametrize("folder", ["npu", "gpu"])
def test_unknown_stage_is_refused(folder):
    script = f"{TEXT}/{folder}/train_v1_0.sh"
    variables = {**os.environ, "STAGE": "9x9x9", "DEVICE": "CPU"}
    finished = subprocess.run(["bash", script], cwd=ROOT, env=variables, capture_output=True, text=True)
    assert finished.returncode == 2
    assert finished.stderr == "error: STAGE 9x9x9: should be 17x256x256, 65x256x256 or 65x512x512\n"


def test_published_inpaint_training(stubs):
    args = parsed(composed(f"{TEXT}/npu/train_inpaint_v1_3.sh"))
    assert (args.snr_gamma, args.train_fps, args.max_hxw, args.min_hxw, args.num_frames) == (
        None,
        18,
        236544,
        102400,
        93,
    )
    assert (args.add_noise_to_condition, args.default_text_ratio, args.start_learning_rate) == (True, 0.5, 1e-5)
    assert args.model == "OpenSoraInpaint_v1_3-2B/122" and args.zero_stage == 2


@pytest.mark.parametrize(
    "folder, names",
    [
        ("single-device", ("train.sh", "train_stage2.sh", "train_stage3.sh")),
        ("multi-devices", ("train.sh", "train_stage2.sh", "train_stage3.sh")),
        ("multi-devices", ("train_stage_1.sh", "train_stage_2.sh", "train_stage_3.sh")),
    ],
)
def test_published_stages_of_the_vae(stubs, folder, names):
    commands = [composed(f"{VAE}/{folder}/{name}") for name in names]
    stages = [parsed(command) for command in commands]
    assert [args.video_num_frames for args in stages] == [25, 49, 49]
    assert [args.sample_rate for args in stages] == [1, 2, 2]
    assert [args.max_train_steps for args in stages] == [800_000, 200_000, 200_000]
    assert [args.perceptual_weight for args in stages] == [0, 0, 0.1]
    for command, args in zip(commands, stages):
        processes = int(split(command)[0].get("worker_num", 1))
        assert args.train_batch_size * args.gradient_accumulation_steps * processes == 8
        assert args.resolution == 256 and args.use_discriminator and args.wavelet_weight == 0.1


def test_inpaint_sampling_takes_the_examples_or_the_users_files(stubs, tmp_path):
    script = ROOT / TEXT / "single-device/sample_inpaint_v1_3.sh"
    args = parsed(composed(str(script)))
    prompts = (ROOT / args.text_prompt[0]).read_text().splitlines()
    images = (ROOT / args.conditional_pixel_values_path).read_text().splitlines()
    assert len(prompts) == len(images)
    assert all((ROOT / path).is_file() for line in images for path in line.split(","))
    (tmp_path / "prompt.txt").write_text("a cat\n")
    finished = subprocess.run(["bash", script], cwd=tmp_path, env=os.environ, capture_output=True, text=True)
    assert "--text_prompt ./prompt.txt" in finished.stdout


@pytest.mark.parametrize("script", ["sample_inpaint_v1_3.sh", "train_inpaint_v1_3.sh"])
def test_gpu_scripts_say_that_there_is_no_build(stubs, script):
    finished = subprocess.run(["bash", f"{TEXT}/gpu/{script}"], cwd=ROOT, capture_output=True, text=True)
    assert (finished.returncode, finished.stdout) == (2, "")
    assert finished.stderr == "error: MindSpore 2.7 has no build for GPUs; set DEVICE=Ascend or DEVICE=CPU\n"
    assert parsed(composed(f"{TEXT}/gpu/{script}", DEVICE="CPU")).device == "CPU"
    assert parsed(composed(f"{TEXT}/gpu/{script}", "--device", "CPU")).device == "CPU"


def test_launch_variable(stubs):
    line = subprocess.run(
        ["bash", f"{TEXT}/multi-devices/sample_t2v_93x640_ddp.sh"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "LAUNCH": "echo srun"},
    ).stdout
    assert line.startswith("srun opensora/sample/sample.py --use_parallel True --model_path")


# A failed run: _launch.sh with a program in place of msrun. Signals are in test_supervision.py.

LAUNCH_A_COMMAND = (
    'set -euo pipefail; source scripts/_launch.sh; launch command.py --nproc_per_node 2 --output_dir "$1"'
)


def start(stubs, folder, *lines: str) -> subprocess.Popen:
    """A launch whose msrun is a shell script of these lines, in which $LOGS is the folder of logs."""
    logs = folder / "parallel_logs"
    logs.mkdir(parents=True)
    (stubs / "python").write_text(f'#!/bin/bash\nexec {sys.executable} "$@"\n')
    (stubs / "msrun").write_text("\n".join(["#!/bin/bash", f"LOGS={logs}", *lines]))
    return subprocess.Popen(
        ["bash", "-c", LAUNCH_A_COMMAND, "bash", str(folder)],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_exit_status_and_reason_of_a_failed_run(stubs, tmp_path):
    process = start(
        stubs,
        tmp_path / "run",
        "echo 'ERROR in rank 1: a.mp4: no frames' > $LOGS/worker_1.log",
        "echo fine > $LOGS/worker_0.log",
        "exit 3",
    )
    _, error = process.communicate(timeout=30)
    assert process.returncode == 1
    assert error == f"error: rank 1: a.mp4: no frames (log: {tmp_path}/run/parallel_logs/worker_1.log)\n"


# Files that the guides name


def test_pictures_of_the_guides_are_those_that_the_tool_draws(tmp_path):
    finished = subprocess.run(
        [sys.executable, "tools/demo/draw_assets.py", "--output_dir", tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (finished.returncode, finished.stderr) == (0, "")
    drawn = sorted(path.name for path in tmp_path.iterdir())
    assert drawn == sorted(path.name for path in (ROOT / "assets/images/condition").iterdir())
    for name in drawn:
        image, kept = (cv2.imread(str(folder / name)) for folder in (tmp_path, ROOT / "assets/images/condition"))
        assert image.shape == (240, 426, 3)
        assert np.abs(image.astype(int) - kept).max() <= 1, "within a rounding of what is kept"


@pytest.mark.parametrize(
    "name",
    [
        *("merge_data", "merge_data_embedded", "image_data_v1_2", "merge_data_train", "merge_data_val"),
        *("video_data_v1_1", "image_data_v1_1"),
    ],
)
def test_data_files_of_the_guides(name):
    lines = (ROOT / f"scripts/train_data/{name}.txt").read_text().splitlines()
    sources = [line.split(",") for line in lines if not line.startswith("#")]
    assert sources and all(len(source) in (2, 3) and source[-1].endswith(".json") for source in sources)
