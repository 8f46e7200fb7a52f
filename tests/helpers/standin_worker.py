"""A worker of the studio without models: it speaks the protocol and writes small videos.

The word `crash` in a prompt ends the process in the middle of a job, `refuse` makes the job fail, `slow` makes every
step take a second. Every video that it makes is a line of DATA/made.log.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shutil
import socket
import sys
import threading
import time
from pathlib import Path

import numpy as np

from opensora.datasets.media import save_image, write_video
from opensora.process.control import die_with_parent
from opensora.serve.protocol import encode

STEP_SECONDS = float(os.environ.get("STANDIN_STEP_SECONDS", "0.005"))


class Standin:
    def __init__(self, args: argparse.Namespace):
        self.data, self.number = Path(args.data), args.worker_number
        self.cancelled: set[str] = set()
        self.lock = os.open(self.data / f"worker-{self.number}.lock", os.O_RDWR | os.O_CREAT)
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        self.examples = {
            True: self.data / f".example-{self.number}.jpg",
            False: self.data / f".example-{self.number}.mp4",
        }
        frames = np.random.default_rng(0).integers(0, 255, (5, 64, 64, 3), np.uint8)
        save_image(self.examples[True], frames[0])
        with write_video(self.examples[False], 8) as write:
            write(frames)
        self.connection = socket.socket(socket.AF_UNIX)
        self.connection.connect(args.socket)
        self.send({"type": "hello", "worker": self.number, "rank": 0, "ranks": 1, "pid": os.getpid()})
        self.send({"type": "ready"})

    def send(self, message: dict) -> None:
        self.connection.sendall(encode(message))

    def serve(self) -> None:
        jobs: list[dict] = []
        arrived = threading.Semaphore(0)

        def listen() -> None:
            for line in self.connection.makefile("rb"):
                message = json.loads(line)
                if message["type"] == "job":
                    jobs.append(message)
                    arrived.release()
                elif message["type"] == "cancel":
                    self.cancelled.add(message["id"])
                else:
                    break
            os._exit(0)

        threading.Thread(target=listen, daemon=True).start()
        while True:
            arrived.acquire()
            self.make(jobs.pop(0))

    def make(self, job: dict) -> None:
        job_id, folder, options = job["id"], Path(job["folder"]), job["options"]
        prompt, steps = options["text_prompt"][0], options["num_sampling_steps"]
        for stage in ("load", "encode", "denoise"):
            self.send({"type": "stage", "id": job_id, "stage": stage})
        for step in range(1, steps + 1):
            time.sleep(1 if "slow" in prompt else STEP_SECONDS)
            self.send(
                {"type": "step", "id": job_id, "step": step, "steps": steps, "seconds_left": 0.1 * (steps - step)}
            )
            if step == 2:
                (folder / "preview.webp").write_bytes(b"RIFF....WEBP")
                self.send({"type": "preview", "id": job_id, "step": step})
            if "crash" in prompt and step == 2:
                print("the worker has crashed", file=sys.stderr, flush=True)
                os._exit(9)
            if job_id in self.cancelled:
                self.send({"type": "cancelled", "id": job_id})
                return
        if "refuse" in prompt:
            self.send({"type": "failed", "id": job_id, "code": "invalid", "message": "this prompt is refused"})
            return
        self.send({"type": "stage", "id": job_id, "stage": "decode"})
        is_image = options["num_frames"] == 1
        name = f"{options['sample_method']}_0_gs{options['guidance_scale']:g}_s{steps}{'.jpg' if is_image else '.mp4'}"
        (folder / name).with_suffix(".json").write_text(json.dumps({"prompt": prompt}))
        temporary = folder / f".{name}.part"
        shutil.copy(self.examples[is_image], temporary)
        os.replace(temporary, folder / name)
        with open(self.data / "made.log", "a") as log:
            log.write(f"{job_id}\n")
        self.send(
            {"type": "done", "id": job_id, "seconds": {"denoise": 0.1 * steps, "decode": 0.2}, "model_calls": steps}
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket")
    parser.add_argument("--worker_number", type=int)
    parser.add_argument("--data")
    args, _ = parser.parse_known_args()
    if "STANDIN_BROKEN" in os.environ:
        sys.exit("error: this worker cannot start")
    die_with_parent(os.getppid())
    Standin(args).serve()


if __name__ == "__main__":
    main()
