"""A worker of the service whose videos are made by two processes."""

from __future__ import annotations

import sys

import numpy as np
from processes import free_port
from worker_socket import WorkerSocket

from opensora.datasets.media import VideoReader

NAME = "EulerAncestralDiscrete_0_gs4_s4.mp4"


def test_processes_share_jobs_and_agree_to_cancel(tmp_path):
    for name in ("group", "alone"):
        (tmp_path / name).mkdir()
    launch = f"-m opensora.launch --worker_num=2 --local_worker_num=2 --master_port={free_port()} --join=True"
    program = [sys.executable, *launch.split(), f"--log_dir={tmp_path}/logs", "python"]  # msrun knows no other name
    with WorkerSocket(tmp_path / "group", program, 2, "--use_parallel", "True") as group:
        group.start("cancelled", text_prompt=["a red circle"], num_sampling_steps=400)
        group.finish("cancelled", until="step")
        group.send({"type": "cancel", "id": "cancelled"})
        assert group.finish("cancelled")[-1]["type"] == "cancelled"
        shared = group.start("made", text_prompt=["a red circle"])
        assert group.finish("made")[-1]["type"] == "done"
    with WorkerSocket(tmp_path / "alone") as worker:
        alone = worker.start("made", text_prompt=["a red circle"])
        worker.finish("made")
    videos = []
    for folder in (shared, alone):
        with VideoReader(folder / NAME) as reader:
            videos.append(reader.read(range(5)).astype(int))
    assert np.abs(videos[0] - videos[1]).max() <= 4  # of different rounding, and of the codec
