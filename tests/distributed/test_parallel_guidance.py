"""Guidance whose two rows are computed by different processes, alone and with sequence parallelism and step caching."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from golden_cases import relative_difference
from processes import ROOT, msrun, slow
from tiny_models import make_release


@pytest.mark.parametrize(
    "workers, parallel, shared, prompts",
    [
        (2, "", "", ["a"]),  # the second process would have no video to make, so that --cfg_size becomes 2
        (2, "--cfg_size 2", "--cache easy:2 --guidance_interval 0.2 1", ["a", "b"]),
        (4, "--cfg_size 2 --sp_size 2", "--cache first_block:0.25", ["a"]),
        slow(4, "--cfg_size 2", "--cache easy:2", ["a", "b", "c"]),  # two videos at a time, each decides for itself
        slow(4, "--cfg_size 2", "--cache first_block:0.25", ["a", "b", "c"]),
        slow(4, "--cfg_size 2 --sp_size 2", "", ["a", "b"]),
        slow(2, "--cfg_size 2", "--mode 0", ["a"]),
    ],
)
def test_equals_one_process(workers, parallel, shared, prompts, tmp_path):
    release = make_release(tmp_path / "release")
    command = f"opensora/sample/sample.py --model_path {release}/transformer --ae_path {release}/vae \
        --text_encoder_name_1 {release}/text --num_frames 5 --height 32 --width 64 --num_sampling_steps 12 \
        --max_sequence_length 64 --rescale_betas_zero_snr --device CPU --save_latents {shared}".split()
    prompt = ["--text_prompt", *prompts]
    subprocess.run([sys.executable, *command, *prompt, "--save_img_path", tmp_path / "one"], cwd=ROOT, check=True)
    flags = ["--save_img_path", tmp_path / "many", "--use_parallel", "True", *parallel.split()]
    finished, logs = msrun(workers, tmp_path / "logs", *command, *prompt, *flags)
    assert finished.returncode == 0, logs[0][-3000:]
    assert ("different processes compute the two rows of guidance" in logs[0]) == ("--cfg_size" not in parallel)
    results = sorted((tmp_path / "one").glob("*.npy"))
    assert len(results) == len(prompts)
    for path in results:
        assert relative_difference(np.load(tmp_path / "many" / path.name), np.load(path)) < 1e-4
        records = [json.loads((tmp_path / run / path.name).with_suffix(".json").read_text()) for run in ("one", "many")]
        assert records[0]["model_calls"] == records[1]["model_calls"]
        assert "cache" not in shared or records[0]["model_calls"] < 12
