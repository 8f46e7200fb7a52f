"""Reconstructs a folder of videos with a VAE, to evaluate the VAE: resumable, and tolerant of unreadable files."""

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
from opensora.datasets.transforms import to_uint8
from opensora.errors import UserError
from opensora.pipelines.reconstruct import ClipSpec, Reconstructor, Scores, read_clip
from opensora.utils.files import atomic_write
from opensora.utils.logs import logger


@dataclass(frozen=True)
class ReconstructionTask:
    """One video to reconstruct; `origin` is the output path for the VAE's input frames, or None."""

    source: Path
    target: Path
    origin: Optional[Path]

    @property
    def name(self) -> str:
        return self.target.name


def plan_tasks(
    real_dir: Union[str, Path],
    generated_dir: Union[str, Path],
    data_file: Optional[str] = None,
    output_origin: bool = False,
    subset_size: int = 0,
) -> list[ReconstructionTask]:
    """One task for each video of `real_dir`, or for each video in the column `video` of a csv file.

    All outputs go to one folder and keep their file names; formats that cannot hold H.264 become .mp4.

    Raises:
        FileNotFoundError: no such folder or csv file.
        UserError: no column `video`, no videos, or two videos with the same output name.
    """
    real_dir, generated_dir = Path(real_dir), Path(generated_dir)
    if data_file:
        sources = listed_videos(real_dir, data_file)
    else:
        outputs = generated_dir.resolve()
        sources = [path for path in list_videos(real_dir, recursive=True) if outputs not in path.resolve().parents]
    tasks: dict[str, ReconstructionTask] = {}
    for source in sources[: subset_size or None]:
        name = source.name if source.suffix.lower() in WRITERS else source.with_suffix(".mp4").name
        if name in tasks:
            raise UserError(f"{source} and {tasks[name].source} would both be written to {generated_dir / name}")
        tasks[name] = ReconstructionTask(
            source, generated_dir / name, generated_dir / "origin" / name if output_origin else None
        )
    return list(tasks.values())


class Results:
    """Scores of finished videos, stored as JSON in the output folder, so that an interrupted run can resume.

    Videos with unreadable scores are reconstructed again.

    Raises:
        UserError: the folder holds reconstructions made with other settings.
    """

    def __init__(self, folder: Path, settings: dict, rank: int = 0, world_size: int = 1):
        name = "reconstruction.json" if world_size == 1 else f"reconstruction.rank{rank}.json"
        self.path, self.settings = folder / name, settings
        self.written: dict[str, dict[str, float]] = {}
        self.earlier: dict[str, dict[str, float]] = {}
        for path in sorted([*folder.glob("reconstruction.json"), *folder.glob("reconstruction.rank*.json")]):
            stored, videos = _read_scores(path)
            for key, value in settings.items():
                if videos and stored.get(key) != value:
                    raise UserError(
                        f"{folder} holds reconstructions with {key}={stored.get(key)}, "
                        f"not {value}: choose another --generated_video_dir"
                    )
            self.earlier.update(videos)
            if path == self.path:
                self.written.update(videos)

    def finished(self, task: ReconstructionTask) -> bool:
        return task.name in self.earlier and task.target.is_file() and (task.origin is None or task.origin.is_file())

    def add(self, scores: dict[str, dict[str, float]]) -> None:
        self.written.update(scores)
        with atomic_write(self.path) as temporary:
            temporary.write_text(json.dumps({"settings": self.settings, "videos": self.written}, indent=1))

    def table(self, tasks: Iterable[ReconstructionTask]) -> dict[str, dict[str, float]]:
        """The scores of the finished ones among these tasks."""
        scores = {**self.earlier, **self.written}
        return {task.name: scores[task.name] for task in tasks if task.name in scores}


def _read_scores(path: Path) -> tuple[dict, dict[str, dict[str, float]]]:
    """The readable settings and scores of a file that `Results` wrote; prints a note to stderr for the others."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        settings, videos = stored["settings"], dict(stored["videos"])
        settings.get("ae")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        logger.warning(f"{path} holds no settings and scores of videos; reconstructing again")
        return {}, {}
    bad = [name for name, scores in videos.items() if not _are_scores(scores)]
    if bad:
        logger.warning(
            f"{path} holds no valid scores of {', '.join(bad[:10])}{' ...' if len(bad) > 10 else ''}; "
            "reconstructing again"
        )
    return settings, {name: scores for name, scores in videos.items() if name not in bad}


def _are_scores(scores: Any) -> bool:
    return (
        isinstance(scores, dict)
        and set(scores) == set(Scores().values)
        and all(type(value) is float and math.isfinite(value) for value in scores.values())
    )


def reconstruct_folder(
    reconstruct: Reconstructor,
    tasks: list[ReconstructionTask],
    clip: ClipSpec,
    ae: str,
    results: Results,
    fps: float,
    batch_size: int = 1,
    num_workers: int = 1,
) -> dict[str, str]:
    """Writes the missing reconstructions. Only videos of equal size share a batch.

    Returns:
        The names of skipped videos (damaged, too short or missing), with the reason.
    """
    todo = [task for task in tasks if not results.finished(task)]
    skipped: dict[str, str] = {}
    batch: list[tuple[ReconstructionTask, np.ndarray]] = []
    with (
        ThreadPoolExecutor(max(1, num_workers)) as pool,
        tqdm(total=len(tasks), initial=len(tasks) - len(todo), unit="video") as progress,
    ):
        for task, video in _read_ahead(pool, todo, clip, ae, batch_size + num_workers):
            if isinstance(video, str):
                skipped[task.name] = video
                progress.update()
                continue
            if batch and (len(batch) == batch_size or batch[0][1].shape != video.shape):
                results.add(_reconstruct_batch(reconstruct, batch, fps))
                progress.update(len(batch))
                batch = []
            batch.append((task, video))
        if batch:
            results.add(_reconstruct_batch(reconstruct, batch, fps))
            progress.update(len(batch))
    return skipped


def _read_ahead(
    pool: ThreadPoolExecutor, tasks: list[ReconstructionTask], clip: ClipSpec, ae: str, ahead: int
) -> Iterator[tuple[ReconstructionTask, Union[np.ndarray, str]]]:
    """Yields clips in order, or the error message instead; at most `ahead` of them are in memory."""

    def read(task: ReconstructionTask) -> Union[np.ndarray, str]:
        try:
            return read_clip(task.source, clip, ae)
        except (ValueError, OSError) as error:
            return str(error)

    waiting: deque = deque()
    for task in tasks:
        waiting.append((task, pool.submit(read, task)))
        if len(waiting) == ahead:
            first, future = waiting.popleft()
            yield first, future.result()
    while waiting:
        first, future = waiting.popleft()
        yield first, future.result()


def _reconstruct_batch(
    reconstruct: Reconstructor, batch: list[tuple[ReconstructionTask, np.ndarray]], fps: float
) -> dict[str, dict[str, float]]:
    tasks = [task for task, _ in batch]
    originals = [to_uint8(video.transpose(1, 2, 3, 0), "half_even") for _, video in batch]
    scores = [Scores() for _ in batch]
    with ExitStack() as files:
        for task, frames in zip(tasks, originals):
            if task.origin is not None:
                files.enter_context(write_video(task.origin, fps))(frames)
        writers = [files.enter_context(write_video(task.target, fps)) for task in tasks]
        done = 0
        for chunk in reconstruct(np.stack([video for _, video in batch])):
            for i, frames in enumerate(chunk):
                writers[i](frames)
                scores[i].add(originals[i][done : done + len(frames)], frames)
            done += chunk.shape[1]
    return {task.name: score.means() for task, score in zip(tasks, scores)}


def settings_of(clip: ClipSpec, ae: str, weights: str) -> dict:
    """The settings that must match for finished files to be reused."""
    return {**asdict(clip), "ae": ae, "weights": weights}
