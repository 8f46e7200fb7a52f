"""The service's side of a worker's socket, with the real worker process."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

from processes import MSRUN, ROOT

from opensora.serve.protocol import decode, encode

DEMO = ROOT / "examples/demo_model"
SETTINGS: dict[str, Any] = {
    "ae_path": f"{DEMO}/vae",
    "text_encoder_name_1": f"{DEMO}/text_encoder",
    "num_frames": 5,
    "height": 64,
    "width": 64,
    "fps": 8,
    "num_sampling_steps": 4,
    "guidance_scale": 4.0,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "prompt_template": "{}",
    "negative_prompt": "",
    "max_sequence_length": 24,
}


class WorkerSocket:
    """Starts a worker, gives it jobs and reads its messages. A context manager, which ends the worker."""

    def __init__(self, data: Path, program: Sequence[str] = (), ranks: int = 1, *more: str):
        self.data, self.ranks = data, ranks
        self.folder = tempfile.TemporaryDirectory(prefix="worker-")
        self.server = socket.socket(socket.AF_UNIX)
        path = f"{self.folder.name}/socket"
        self.server.bind(path)
        self.server.listen()
        self.server.settimeout(240)
        self.log = data / "worker.log"
        program = [*(program or [sys.executable]), "-m", "opensora.serve.worker"]
        command = [*program, "--socket", path, "--worker_number", "0"]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [*command, "--data", str(data), "--device", "CPU", *more],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{MSRUN.parent}:{os.environ['PATH']}"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.connections = {}
        self.readers = {}

    def __enter__(self) -> WorkerSocket:
        for _ in range(self.ranks):
            connection, _ = self.server.accept()
            reader = connection.makefile("rb")
            hello = decode(reader.readline())
            assert hello["type"] == "hello" and hello["worker"] == 0 and hello["ranks"] == self.ranks
            self.connections[hello["rank"]], self.readers[hello["rank"]] = connection, reader
        assert self.read()["type"] == "ready"
        return self

    def __exit__(self, *error) -> None:
        for rank, connection in self.connections.items():
            self.readers[rank].close()
            connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        self.server.close()
        assert self.process.wait(60) is not None
        self.folder.cleanup()

    def send(self, message: dict[str, Any]) -> None:
        for connection in self.connections.values():
            connection.sendall(encode(message))

    def read(self) -> dict[str, Any]:
        line = self.readers[0].readline()
        assert line, self.log.read_text()[-3000:]
        return decode(line)

    def start(self, job: str, model: str = "transformer", **options: Any) -> Path:
        """Gives the worker a job; returns its folder."""
        folder = self.data / job
        folder.mkdir(exist_ok=True)
        fields = {**SETTINGS, "model_path": f"{DEMO}/{model}", "save_img_path": str(folder), "seed": 3, **options}
        self.send({"type": "job", "id": job, "folder": str(folder), "options": json.loads(json.dumps(fields))})
        return folder

    def finish(self, job: str, until: Optional[str] = None) -> list[dict[str, Any]]:
        """The messages about a job up to its end, or up to the first of a type."""
        messages = []
        while True:
            message = self.read()
            if message.get("id") == job:
                messages.append(message)
                if message["type"] in ("done", "failed", "cancelled", until):
                    return messages
