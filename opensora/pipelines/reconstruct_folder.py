"""A folder of videos through a VAE and back, for measuring the VAE: resumable, and no bad file stops it."""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np
from tqdm import tqdm

from opensora.datasets.media import WRITERS, write_video
from opensora.datasets.media.folders import list_videos, listed_videos
from opensora.errors import UserError
from opensora.pipelines.reconstruct import Clip, Reconstructor, Scores, as_frames, read_clip
from opensora.utils.files import atomic_write
from opensora.utils.logs import logger


@dataclass(frozen=True)
class Job:
    """One video to reconstruct; `origin` is where the frames the VAE saw go, or None."""

    source: Path
    target: Path
    origin: Optional[Path]

    @property
    def name(self) -> str:
        return self.target.name


def plan_jobs(
    real_dir: Union[str, Path],
    generated_dir: Union[str, Path],
    data_file: Optional[str] = None,
    output_origin: bool = False,
    subset_size: int = 0,
) -> list[Job]:
    """The videos of `real_dir`, or those a csv file lists in its column `video`, and where each one goes.

    Files keep their names, flat in one folder; what cannot hold H.264 becomes .mp4.

    Raises:
        FileNotFoundError: no such folder or csv file.
        UserError: no column `video`, nothing to do, or two videos that would get one name.
    """
    real_dir, generated_dir = Path(real_dir), Path(generated_dir)
    if data_file:
        sources = listed_videos(real_dir, data_file)
    else:
        own = generated_dir.resolve()
        sources = [path for path in list_videos(real_dir, recursive=True) if own not in path.resolve().parents]
    jobs: dict[str, Job] = {}
    for source in sources[: subset_size or None]:
        name = source.name if source.suffix.lower() in WRITERS else source.with_suffix(".mp4").name
        if name in jobs:
            raise UserError(f"{source} and {jobs[name].source} would both be written to {generated_dir / name}")
        jobs[name] = Job(source, generated_dir / name, generated_dir / "origin" / name if output_origin else None)
    return list(jobs.values())


class Results:
    """Scores of finished videos, kept as json beside them, so that a run can go on where one stopped.

    Videos whose scores cannot be read are made again.

    Raises:
        UserError: the folder holds reconstructions made with other settings.
    """

    def __init__(self, folder: Path, settings: dict, rank: int = 0, world_size: int = 1):
        name = "reconstruction.json" if world_size == 1 else f"reconstruction.rank{rank}.json"
        self.path, self.settings = folder / name, settings
        self.own: dict[str, dict[str, float]] = {}
        self.earlier: dict[str, dict[str, float]] = {}
        for path in sorted([*folder.glob("reconstruction.json"), *folder.glob("reconstruction.rank*.json")]):
            made_with, videos = _read_scores(path)
            for key, value in settings.items():
                if videos and made_with.get(key) != value:
                    raise UserError(
                        f"{folder} holds reconstructions with {key}={made_with.get(key)}, "
                        f"now it is {value}: choose another --generated_video_dir"
                    )
            self.earlier.update(videos)
            if path == self.path:
                self.own.update(videos)

    def finished(self, job: Job) -> bool:
        return job.name in self.earlier and job.target.is_file() and (job.origin is None or job.origin.is_file())

    def add(self, scores: dict[str, dict[str, float]]) -> None:
        self.own.update(scores)
        with atomic_write(self.path) as temporary:
            temporary.write_text(json.dumps({"settings": self.settings, "videos": self.own}, indent=1))

    def table(self, jobs: Iterable[Job]) -> dict[str, dict[str, float]]:
        """The scores of these jobs, as far as they are done."""
        scores = {**self.earlier, **self.own}
        return {job.name: scores[job.name] for job in jobs if job.name in scores}


def _read_scores(path: Path) -> tuple[dict, dict[str, dict[str, float]]]:
    """The settings and scores that `Results` wrote, as far as they can be read; the rest is named on stderr."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        settings, videos = stored["settings"], dict(stored["videos"])
        settings.get("ae")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        logger.warning(f"{path} holds no settings and scores of videos; its videos are made again")
        return {}, {}
    bad = [name for name, scores in videos.items() if not _are_scores(scores)]
    if bad:
        logger.warning(f"{path} holds no scores of {', '.join(bad[:10])}{' ...' if len(bad) > 10 else ''}; made again")
    return settings, {name: scores for name, scores in videos.items() if name not in bad}


def _are_scores(scores: Any) -> bool:
    return (
        isinstance(scores, dict)
        and set(scores) == set(Scores().values)
        and all(type(value) is float and math.isfinite(value) for value in scores.values())
    )


def reconstruct_folder(
    reconstruct: Reconstructor,
    jobs: list[Job],
    clip: Clip,
    ae: str,
    results: Results,
    fps: float,
    batch_size: int = 1,
    num_workers: int = 1,
) -> dict[str, str]:
    """Writes the reconstructions that are not there yet. Videos of one size share a batch.

    Returns the videos left out, and why: damaged, too short or absent ones.
    """
    todo = [job for job in jobs if not results.finished(job)]
    skipped: dict[str, str] = {}
    batch: list[tuple[Job, np.ndarray]] = []
    with (
        ThreadPoolExecutor(max(1, num_workers)) as pool,
        tqdm(total=len(jobs), initial=len(jobs) - len(todo), unit="video") as progress,
    ):
        for job, video in _read_ahead(pool, todo, clip, ae, batch_size + num_workers):
            if isinstance(video, str):
                skipped[job.name] = video
                progress.update()
                continue
            if batch and (len(batch) == batch_size or batch[0][1].shape != video.shape):
                results.add(_reconstruct_batch(reconstruct, batch, fps))
                progress.update(len(batch))
                batch = []
            batch.append((job, video))
        if batch:
            results.add(_reconstruct_batch(reconstruct, batch, fps))
            progress.update(len(batch))
    return skipped


def _read_ahead(
    pool: ThreadPoolExecutor, jobs: list[Job], clip: Clip, ae: str, ahead: int
) -> Iterator[tuple[Job, Union[np.ndarray, str]]]:
    """Clips in order, or the reason there is none; at most `ahead` of them are in memory."""

    def read(job: Job) -> Union[np.ndarray, str]:
        try:
            return read_clip(job.source, clip, ae)
        except (ValueError, OSError) as error:
            return str(error)

    waiting: deque = deque()
    for job in jobs:
        waiting.append((job, pool.submit(read, job)))
        if len(waiting) == ahead:
            first, future = waiting.popleft()
            yield first, future.result()
    while waiting:
        first, future = waiting.popleft()
        yield first, future.result()


def _reconstruct_batch(
    reconstruct: Reconstructor, batch: list[tuple[Job, np.ndarray]], fps: float
) -> dict[str, dict[str, float]]:
    jobs = [job for job, _ in batch]
    originals = [as_frames(video) for _, video in batch]
    scores = [Scores() for _ in batch]
    with ExitStack() as files:
        for job, frames in zip(jobs, originals):
            if job.origin is not None:
                files.enter_context(write_video(job.origin, fps))(frames)
        writers = [files.enter_context(write_video(job.target, fps)) for job in jobs]
        done = 0
        for piece in reconstruct(np.stack([video for _, video in batch])):
            for i, frames in enumerate(piece):
                writers[i](frames)
                scores[i].add(originals[i][done : done + len(frames)], frames)
            done += piece.shape[1]
    return {job.name: score.means() for job, score in zip(jobs, scores)}


def settings_of(clip: Clip, ae: str, weights: str) -> dict:
    """What must stay the same for finished files to count."""
    return {**asdict(clip), "ae": ae, "weights": weights}
