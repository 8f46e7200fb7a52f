"""The studio itself: takes jobs, gives them to workers in order, follows their progress, and says so to readers."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Optional

from opensora.sample.options import SampleOptions
from opensora.serve.catalog import Catalog
from opensora.serve.conditions import prepare_frames
from opensora.serve.errors import ApiError, invalid, not_found
from opensora.serve.estimates import Estimates
from opensora.serve.events import Broker
from opensora.serve.options import ServeOptions
from opensora.serve.protocol import PREVIEW, STATE
from opensora.serve.requests import FILE_ID, PROMPT_NAME, VIDEO_ID, command_line, may_name_file, new_id, sample_fields
from opensora.serve.store import CANCELLED, COMPLETED, FINAL, IN_PROGRESS, QUEUED, Job, Store, Upload
from opensora.serve.views import Progress, job_view, service_view
from opensora.serve.workers import BUSY, FAILING, IDLE, Worker, Workers
from opensora.utils.files import atomic_write
from opensora.utils.folder_lock import compressed_bytes
from opensora.utils.logs import logger

MOST_DEATHS = 3  # of workers that worked on a job, before it fails
DISK_RESERVE = 256 << 20  # bytes that stay free


class Studio:
    """Everything but HTTP. All methods run in one thread, that of the event loop.

    Args:
        data: the service's folder, which this process has locked.
        device, memory: flags of the workers.
        program: of the workers, for tests.
    """

    def __init__(
        self,
        options: ServeOptions,
        catalog: Catalog,
        store: Store,
        data: Path,
        device: Sequence[str] = (),
        memory: Sequence[str] = (),
        program: Sequence[str] = ("-m", "opensora.serve.worker"),
    ):
        self.options, self.catalog, self.store, self.data = options, catalog, store, data
        self.broker = Broker()
        self.estimates = Estimates(store, device)
        self._device = device
        self._progress: dict[str, Progress] = {}
        for name in ("videos", "files"):
            (data / name).mkdir(exist_ok=True)
        self.workers = Workers(
            data,
            options.worker_num,
            options.ranks_per_worker,
            ["--preview_interval", f"{options.preview_interval:g}", *device, *memory],
            self._on_message,
            lambda worker: self._dispatch(),
            self._on_end,
            program,
        )

    async def start(self) -> None:
        self.recover()
        await self.workers.start()

    async def stop(self) -> None:
        """Ends the workers; running jobs return to the queue."""
        self.broker.close()
        await self.workers.stop()
        for job in self.store.unfinished():
            if job.status == IN_PROGRESS:
                self._settle(job) or self.store.requeue(job.id)
        self.store.close()

    def recover(self) -> None:
        """Brings files and store together after this or an earlier process ended at any moment."""
        for job in self.store.unfinished():
            if not self._settle(job) and job.status == IN_PROGRESS:
                self.store.requeue(job.id)
        for folder, known in (("videos", self.store.job_ids()), ("files", set(self.store.upload_ids()))):
            for path in (self.data / folder).iterdir():
                if path.name not in known:
                    shutil.rmtree(path, ignore_errors=True)

    # What clients ask for

    async def submit(self, spec: Mapping[str, Any], priority: int) -> Job:
        """Adds a job.

        Raises:
            ApiError: a full queue or disk, or given frames that cannot be used.
        """
        self._check_room(spec)
        job_id = new_id("video")
        folder = self.folder(job_id)
        try:
            spec = {**spec, **await self._prepare(spec, folder)}
            if may_name_file(spec["prompt"]):
                with atomic_write(folder / PROMPT_NAME) as temporary:
                    temporary.write_text(json.dumps([spec["prompt"]]), encoding="utf-8")
            result = SampleOptions(**sample_fields(spec, folder)).result_path(0).name
            job = self.store.add_job(job_id, spec, priority, result)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        asyncio.get_running_loop().call_soon(self._dispatch)  # the answer is the queued job
        return job

    def job(self, job_id: str) -> Job:
        """Raises ApiError if there is no such job."""
        job = self.store.job(job_id) if VIDEO_ID.fullmatch(job_id) else None
        if job is None:
            raise not_found("video")
        return job

    def upload(self, upload_id: str) -> Upload:
        """Raises ApiError if there is no such upload."""
        upload = self.store.upload(upload_id) if FILE_ID.fullmatch(upload_id) else None
        if upload is None:
            raise not_found("file")
        return upload

    def cancel(self, job_id: str) -> Job:
        """Cancels a job. One that has ended stays as it is."""
        job = self.job(job_id)
        if self.store.cancel(job.id):
            worker = self._worker_of(job.id)
            if worker is not None:
                worker.send({"type": "cancel", "id": job.id})
            else:
                self._remove_unfinished(job)
            self._progress.pop(job.id, None)
            self._publish_final(job.id)
            self._publish_queue()
        return self.job(job.id)

    def remove(self, job_id: str) -> None:
        """Removes a job and its files.

        Raises:
            ApiError: it has not ended.
        """
        job = self.job(job_id)
        if job.status not in FINAL or self._worker_of(job.id) is not None:
            raise ApiError(409, "not_finished", "the video is still being made or waits; cancel it first")
        self.store.remove_job(job.id)
        shutil.rmtree(self.folder(job.id), ignore_errors=True)
        self.broker.publish("deleted", job.id, {"id": job.id})
        self.broker.end(job.id)

    def folder(self, job_id: str) -> Path:
        return self.data / "videos" / job_id

    def upload_folder(self, upload_id: str) -> Path:
        return self.data / "files" / upload_id

    def result(self, job: Job) -> Path:
        """The file of a video. Raises ApiError if the job is not completed."""
        if job.status != COMPLETED:
            raise ApiError(409, "not_completed", f"the video is {job.status}; wait until it is completed")
        return self.folder(job.id) / job.result

    def preview(self, job: Job) -> Optional[Path]:
        path = self.folder(job.id) / PREVIEW
        return path if path.is_file() else None

    def command(self, job: Job) -> str:
        """A command line that makes the same video."""
        return command_line(sample_fields(job.spec, self.folder(job.id)), self._device)

    def view(self, job: Job, positions: Optional[Mapping[str, int]] = None) -> dict[str, Any]:
        """The job as clients see it.

        Args:
            positions: of the queue's jobs, for several views; None: they are looked up.
        """
        if positions is None:
            positions = self.positions() if job.status == QUEUED else {}
        return job_view(job, self._progress.get(job.id, Progress()), positions.get(job.id))

    def views(self, jobs: Sequence[Job]) -> list[dict[str, Any]]:
        positions = self.positions()
        return [self.view(job, positions) for job in jobs]

    def positions(self) -> dict[str, int]:
        """Places in the queue, from 1."""
        return {job_id: place for place, job_id in enumerate(self.store.queue(), start=1)}

    def service(self) -> dict[str, Any]:
        """What GET /v1/service answers."""
        return service_view(self.options, self.catalog, self.workers.all, len(self.store.queue()))

    def first_events(self, since: Optional[float] = None) -> Iterator[tuple[str, str, Any]]:
        """What a new reader of all events gets first: unfinished jobs, and those that ended since a moment."""
        yield "service", "service", self.service()
        ended = self.store.completed_since(since) if since is not None else []
        for view in self.views([*ended, *self.store.unfinished()]):
            yield "job", view["id"], view

    # What workers report

    def _dispatch(self) -> None:
        """Gives the first jobs of the queue to idle workers."""
        for worker in self.workers.all:
            if worker.state == IDLE and (job := self.store.start_next()) is not None:
                self._give(worker, job)
        self._publish_queue()

    def _give(self, worker: Worker, job: Job) -> None:
        folder = self.folder(job.id)
        worker.state, worker.job = BUSY, job.id
        self._progress[job.id] = Progress()
        fields = sample_fields(job.spec, folder)
        worker.send({"type": "job", "id": job.id, "folder": str(folder), "options": fields})
        logger.info(f"{job.id}: worker {worker.number} makes {job.spec['size']}x{job.spec['num_frames']}")
        self._publish(job.id)

    def _on_message(self, worker: Worker, message: Mapping[str, Any]) -> None:
        kind, job_id = message["type"], message["id"]
        if job_id != worker.job:
            return
        progress = self._progress.get(job_id, Progress())  # of a cancelled job nothing is shown
        if kind == "stage":
            progress.stage, progress.step, progress.seconds_left = message["stage"], 0, None
        elif kind == "step":
            progress.stage = "denoise"
            progress.step, progress.steps = message["step"], message["steps"]
            progress.seconds_left = message.get("seconds_left")
        elif kind == "preview":
            progress.preview_step = message["step"]
        if kind in ("stage", "step", "preview"):
            if job_id in self._progress:
                self._publish(job_id)
            return
        if kind == "done":
            self._completed(job_id, message)
        elif kind == "failed":
            self._fail(job_id, message["code"], message["message"])
        self._released(worker)

    def _completed(self, job_id: str, message: Mapping[str, Any]) -> None:
        job = self.job(job_id)
        if job.status == IN_PROGRESS and not self._settle(job):
            self._fail(job_id, "no_result", f"the worker wrote no {job.result}; see the logs of the service")
        elif self.job(job_id).status == COMPLETED:
            self.estimates.record(job.spec, message.get("seconds", {}), message.get("model_calls", job.spec["steps"]))
            self._publish_final(job_id)

    def _settle(self, job: Job) -> bool:
        """Records a job as completed if its result is there; results appear whole, by a rename."""
        if not (self.folder(job.id) / job.result).is_file():
            return False
        completed = self.store.complete(job.id)
        for name in (STATE, PREVIEW):
            with suppress(OSError):
                (self.folder(job.id) / name).unlink()
        return completed

    def _fail(self, job_id: str, code: str, message: str) -> None:
        if self.store.fail(job_id, code, message):
            logger.warning(f"{job_id} failed: {message}")
            self._publish_final(job_id)

    def _released(self, worker: Worker) -> None:
        """The worker has finished its job, in whatever way."""
        job = self.store.job(worker.job or "")
        if job is not None and job.status != COMPLETED:
            self._remove_unfinished(job)
        if job is not None:
            self._progress.pop(job.id, None)
        worker.state, worker.job = IDLE, None
        self._dispatch()

    def _on_end(self, worker: Worker) -> None:
        """A worker process has ended unasked."""
        job = self.store.job(worker.job or "")
        if job is not None:
            self._progress.pop(job.id, None)
        if job is not None and job.status == CANCELLED:
            self._remove_unfinished(job)
        elif job is not None and job.status == IN_PROGRESS and not self._settle(job):
            if job.deaths + 1 >= MOST_DEATHS:
                self._fail(
                    job.id, "worker_died", f"its worker ended {MOST_DEATHS} times while making it; {worker.reason}"
                )
            else:
                self.store.requeue(job.id, died=True)
        if job is not None:
            self._publish(job.id)
            if self.job(job.id).status in FINAL:
                self.broker.end(job.id)
        if all(other.state == FAILING for other in self.workers.all):
            for job_id in self.store.queue():
                self._fail(job_id, "no_worker", f"no worker can be started; {worker.reason}")
        self._publish_queue()

    def _worker_of(self, job_id: str) -> Optional[Worker]:
        return next((worker for worker in self.workers.all if worker.job == job_id), None)

    def _remove_unfinished(self, job: Job) -> None:
        """Removes what the worker of a job that failed or was cancelled has left."""
        for name in (job.result, PREVIEW, STATE):
            with suppress(OSError):
                (self.folder(job.id) / name).unlink()

    def _publish(self, job_id: str) -> None:
        self.broker.publish("job", job_id, self.view(self.job(job_id)))

    def _publish_final(self, job_id: str) -> None:
        self._publish(job_id)
        self.broker.end(job_id)

    def _publish_queue(self) -> None:
        """The places in the queue have changed."""
        self.broker.publish("service", "service", self.service())
        positions = self.positions()
        for job in self.store.unfinished():
            if job.status == QUEUED:
                self.broker.publish("job", job.id, self.view(job, positions))

    def _check_room(self, spec: Mapping[str, Any]) -> None:
        waiting = len(self.store.queue())
        if waiting >= self.options.max_queue:
            raise ApiError(429, "queue_full", f"{waiting} videos wait; try again later", None, {"Retry-After": "30"})
        self.check_disk(compressed_bytes(spec["num_frames"], _pixels(spec)))

    def check_disk(self, needed: float) -> None:
        """Raises ApiError if a file of this size would leave too little space."""
        if shutil.disk_usage(self.data).free < needed + DISK_RESERVE:
            raise ApiError(507, "disk_full", "the disk of the service is full; remove videos, or ask its operator")

    async def _prepare(self, spec: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        """Copies the given frames into the folder of a job; returns additions to its spec."""
        if spec["remixed_from"] is not None and self.store.job(spec["remixed_from"]) is None:
            raise invalid("remixed_from", "remixed_from names no video of this service")
        folder.mkdir()
        if not spec["frames"]:
            return {}
        sources = []
        for frame in spec["frames"]:
            if "file" in frame:
                upload = self.upload(frame["file"])
                sources.append(self.upload_folder(upload.id) / upload_name(upload.kind))
            else:
                sources.append(self.result(self.job(frame["video"])))
        return {"condition": await asyncio.to_thread(prepare_frames, folder, spec, sources)}


def upload_name(kind: str) -> str:
    """The file name of an upload's decoded copy."""
    return "image.png" if kind == "image" else "video.mp4"


def _pixels(spec: Mapping[str, Any]) -> int:
    width, _, height = spec["size"].partition("x")
    return int(width) * int(height)
