"""All metrics of one video."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Optional

import numpy as np

from opensora.config.evaluation import PAIR_METRICS, TEXT_METRICS, EvaluateOptions
from opensora.datasets.media import VideoReader
from opensora.eval.networks import NEEDS, Networks
from opensora.eval.pairs import Pair, Sampling, frames_of_pair
from opensora.metrics import lpips, motion_amount, psnr, ssim, temporal_flickering
from opensora.metrics.clip_similarity import clip_cosines, clip_features, logit_factor, token_ids
from opensora.metrics.frame_features import NETWORK_LOCK
from opensora.metrics.vbench import aesthetic_scores, consistency, dino_features
from opensora.metrics.video_distance import fvd_features


@dataclass(frozen=True)
class Video:
    """A generated video, the real one to compare it with, and its prompt, as far as there are any."""

    path: Path
    real: Optional[Path] = None
    prompt: Optional[str] = None

    def source(self) -> list:
        """What the values depend on: the prompt, and size and time of change of the files."""
        files = [path.stat() for path in (self.path, self.real) if path is not None]
        return [self.prompt, *([file.st_size, file.st_mtime_ns] for file in files)]


class VideoMeasure:
    """Measures videos: `measure(video)` gives the record of a video.

    Args:
        metrics: names; those without an input in a video are left out of its record.
    """

    def __init__(self, metrics: tuple[str, ...], options: EvaluateOptions, networks: Networks):
        self.metrics, self.networks, self.protocol = metrics, networks, options.fvd_protocol
        self.workers = max(1, options.num_workers)
        self.sampling = Sampling(
            options.num_frames, options.sample_rate, options.resolution, options.crop_size, options.batch_size
        )
        self.of_frames: dict[str, Callable[[np.ndarray], Any]] = {
            "temporal_flickering": lambda frames: float(temporal_flickering([frames])[0]),
            "motion_amount": lambda frames: float(motion_amount([frames])[0]),
            "fvd": lambda frames: fvd_features(frames, networks.i3d, self.protocol).tolist(),
            "background_consistency": lambda frames: consistency(clip_features(frames, networks.clip, "vbench")),
            "subject_consistency": lambda frames: consistency(dino_features(frames, networks.dino)),
            "aesthetic_quality": lambda frames: float(
                aesthetic_scores(clip_features(frames, networks.clip_large, "vbench"), networks.head).mean()
            ),
        }

    def __call__(self, video: Video) -> dict[str, Any]:
        """The values by metric, FVD's features among them, the seconds that each took, and the number of frames.

        Raises:
            UserError, OSError: a damaged video, or one that a metric refuses.
        """
        record: dict[str, Any] = {"source": video.source(), "values": {}, "seconds": {}}
        pairs = [name for name in self.metrics if name in PAIR_METRICS]
        if pairs and video.real:
            record["values"].update(self._pair_values(Pair(video.real, video.path), pairs, record["seconds"]))
        others = [name for name in self.metrics if name in self.of_frames]
        of_text = [name for name in self.metrics if name in TEXT_METRICS] if video.prompt is not None else []
        if not others and not of_text:
            return record
        frames = self.read(video.path)
        record["frames"] = len(frames)
        for name in others:
            # The time of a network does not include the wait for that of another thread.
            with NETWORK_LOCK if name in NEEDS else nullcontext(), seconds_of(name, record["seconds"]):
                record["values"][name] = self.of_frames[name](frames)
        if of_text:
            record["values"].update(self._text_values(frames, str(video.prompt), of_text, record["seconds"]))
        return record

    def read(self, path: Path, rate: int = 1) -> np.ndarray:
        """Frames (T, H, W, 3), uint8: the first `num_frames` of the sampled ones, or all."""
        with VideoReader(path) as reader:
            reader.check()
            count = self.sampling.num_frames or -(-len(reader) // rate)
            return np.concatenate(list(reader.chunks(range(0, count * rate, rate), self.sampling.batch_size)))

    def _text_values(
        self, frames: np.ndarray, prompt: str, names: list[str], seconds: dict[str, float]
    ) -> dict[str, float]:
        """The metrics of a video and its prompt, which have the same cosines."""
        clip, spent = self.networks.clip, dict[str, float]()
        with NETWORK_LOCK, seconds_of("cosines", spent):
            clipsim = float(clip_cosines([frames], token_ids(prompt, self.networks.tokenizer, clip), clip)[0].mean())
            found = {"clipsim": clipsim, "clip_score": logit_factor(clip) * clipsim}
        seconds.update(dict.fromkeys(names, spent["cosines"]))
        return {name: found[name] for name in names}

    def _pair_values(self, pair: Pair, names: list[str], seconds: dict[str, float]) -> dict[str, float]:
        functions: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
            "psnr": psnr,
            "ssim": ssim,
            "lpips": lambda real, generated: lpips(real, generated, self.networks.lpips),
        }
        values: dict[str, list[np.ndarray]] = {name: [] for name in names}
        for real, generated in frames_of_pair(pair, self.sampling):
            for name in names:
                with NETWORK_LOCK if name in NEEDS else nullcontext(), seconds_of(name, seconds):
                    values[name].append(functions[name](real, generated))
        return {name: float(np.concatenate(parts).mean()) for name, parts in values.items()}


@contextmanager
def seconds_of(name: str, seconds: dict[str, float]) -> Iterator[None]:
    """Adds the time of the body to `seconds[name]`."""
    start = time.perf_counter()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start
