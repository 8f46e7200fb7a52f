"""Measures folders of generated videos: one pass over each, which can be resumed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, Optional, Union
from zlib import crc32

import numpy as np
from tqdm import tqdm

from opensora.config.evaluation import PAIR_METRICS, TEXT_METRICS, EvaluateOptions
from opensora.datasets.media.folders import list_videos
from opensora.errors import UserError
from opensora.eval.measure import Video, VideoMeasure
from opensora.eval.networks import NEEDS, Networks
from opensora.eval.pairs import pair_videos
from opensora.eval.prompts import prompts_of
from opensora.eval.results import Results
from opensora.metrics.frechet import FeatureStatistics, frechet_distance
from opensora.metrics.vbench import mean_over_frames
from opensora.metrics.video_distance import fvd_features, warn_if_few
from opensora.utils.logs import logger

POOLED = ("background_consistency", "subject_consistency")  # means over frames, as in VBench


@dataclass
class FolderResult:
    """What was measured of a folder.

    Attributes:
        values: metric -> its value for the folder.
        videos: video -> metric -> value; without FVD, which is of the whole folder.
        skipped: video -> why it was not measured.
        left_out: metric -> why it was not computed.
        seconds: metric -> mean seconds for a video.
        unpaired: videos without a partner in the other folder.
    """

    folder: str
    values: dict[str, float] = field(default_factory=dict)
    videos: dict[str, dict[str, float]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    unpaired: list[str] = field(default_factory=list)


def evaluate(options: EvaluateOptions) -> list[FolderResult]:
    """Measures every folder.

    Raises:
        FileNotFoundError, UserError: missing or damaged networks, metrics without their input, nothing to measure.
    """
    networks = Networks(options)
    metrics, missing = _with_networks(options)
    networks.load(metrics)
    measure = VideoMeasure(metrics, options, networks)
    real = _real_features(options, measure) if "fvd" in metrics else None
    return [_evaluate_folder(folder, options, measure, real, missing) for folder in options.generated_video_dir]


def _with_networks(options: EvaluateOptions) -> tuple[tuple[str, ...], dict[str, str]]:
    """The metrics whose networks and real videos are given, and why the others are left out.

    Raises:
        UserError: a metric that was asked for by its name lacks one.
    """
    left_out: dict[str, str] = {}
    for metric in options.wanted():
        flags = [flag for flag in NEEDS.get(metric, ()) if not _given(getattr(options, flag), options.wants_all)]
        if (metric in PAIR_METRICS or metric == "fvd") and options.real_video_dir is None:
            flags.append("real_video_dir")
        if flags:
            left_out[metric] = f"needs {' and '.join(f'--{flag}' for flag in flags)}"
    if left_out and not options.wants_all:
        name, reason = next(iter(left_out.items()))
        raise UserError(f"{name} {reason}")
    return tuple(name for name in options.wanted() if name not in left_out), left_out


def _given(path: Optional[str], must_exist: bool) -> bool:
    """Whether a path was given; a default path counts only if it exists where metrics may be left out."""
    return path is not None and (not must_exist or Path(path).exists() or path != EvaluateOptions.lpips_path)


def _evaluate_folder(
    folder: str,
    options: EvaluateOptions,
    measure: VideoMeasure,
    real: Optional[FeatureStatistics],
    missing: Mapping[str, str],
) -> FolderResult:
    result = FolderResult(folder, left_out=dict(missing))
    videos = _videos(folder, options, measure.metrics, result)
    results = Results(_results_file(options, folder, "generated"), _settings(options, measure))
    for name, outcome in _measured(videos, measure, results):
        if isinstance(outcome, str):
            result.skipped[name] = outcome
    names = [video.path.name for video in videos if video.path.name not in result.skipped]
    records = {name: results.records[name] for name in names}
    if not records:
        raise UserError(
            f"none of {len(videos)} videos in {folder} could be measured; first error: "
            f"{next(iter(result.skipped.values()))}"
        )
    _summarize(records, measure.metrics, real, result)
    return result


def _videos(folder: str, options: EvaluateOptions, metrics: Sequence[str], result: FolderResult) -> list[Video]:
    """The videos of a folder, with their partners and prompts."""
    paths, partners = list_videos(folder), {}
    compared = [metric for metric in metrics if metric in PAIR_METRICS]
    if compared:
        try:
            pairs, result.unpaired = pair_videos(str(options.real_video_dir), folder)
        except UserError as error:
            if not options.wants_all:
                raise
            pairs = []
            result.left_out.update(dict.fromkeys(compared, str(error)))
        partners = {pair.generated: pair.real for pair in pairs}
        if len(compared) == len(metrics):
            paths = [pair.generated for pair in pairs]
    prompts = prompts_of(paths, options.prompts) if any(metric in TEXT_METRICS for metric in metrics) else {}
    if not prompts:
        absent = [metric for metric in metrics if metric in TEXT_METRICS]
        result.left_out.update(dict.fromkeys(absent, "needs --prompts, or the records that sample.py writes"))
        if absent and not options.wants_all:
            raise UserError(f"{absent[0]} needs --prompts: {folder} has no records of sample.py")
    videos = [Video(path, partners.get(path), prompts.get(path.name)) for path in paths]
    return videos[: options.subset_size or None]


def _measured(videos: Sequence[Video], measure: VideoMeasure, results: Results):
    """Measures the videos without a record; yields the name and the record, or the reason why there is none."""

    def outcome(video: Video) -> tuple[str, Union[dict, str]]:
        try:
            return video.path.name, measure(video)
        except (ValueError, OSError) as error:
            return video.path.name, str(error)

    pending = [video for video in videos if results.source(video.path.name) != video.source()]
    if len(pending) < len(videos):
        logger.info(f"{len(videos) - len(pending)} of {len(videos)} videos were measured before")
    with ThreadPool(measure.workers) as pool:
        for name, found in tqdm(pool.imap(outcome, pending), total=len(pending), unit="video"):
            if not isinstance(found, str):
                results.add(name, found)
            yield name, found


def _real_features(options: EvaluateOptions, measure: VideoMeasure) -> FeatureStatistics:
    """The statistics of the features of all real videos, for FVD."""
    paths = list_videos(str(options.real_video_dir))[: options.subset_size or None]
    results = Results(_results_file(options, str(options.real_video_dir), "real"), _settings(options, measure))
    statistics, skipped = FeatureStatistics(), {}
    for path in tqdm(paths, "real videos", unit="video"):
        source = Video(path).source()
        if results.source(path.name) != source:
            try:
                frames = measure.read(path, options.sample_rate)
                features = fvd_features(frames, measure.networks.i3d, options.fvd_protocol)
            except (ValueError, OSError) as error:
                skipped[path.name] = str(error)
                continue
            results.add(path.name, {"source": source, "fvd": features.tolist()})
        statistics.add(np.array(results.records[path.name]["fvd"]))
    for name, reason in skipped.items():
        logger.warning(f"{name}: left out of the real videos of FVD: {reason}")
    if not statistics.count:
        raise UserError(
            f"{options.real_video_dir}: no video could be read for FVD; first: {next(iter(skipped.values()))}"
        )
    return statistics


def _summarize(
    records: Mapping[str, Mapping[str, Any]],
    metrics: Sequence[str],
    real: Optional[FeatureStatistics],
    result: FolderResult,
) -> None:
    """Fills in the values of the folder from the records of its videos."""
    result.videos = {
        name: {metric: value for metric, value in record["values"].items() if metric != "fvd"}
        for name, record in records.items()
    }
    for metric in metrics:
        found = [record for record in records.values() if metric in record["values"]]
        if not found:
            continue
        values = [record["values"][metric] for record in found]
        result.seconds[metric] = float(np.mean([record["seconds"][metric] for record in found]))
        if metric == "fvd":
            assert real is not None, "computed if fvd is among the metrics"
            generated = FeatureStatistics.of(np.array(features) for features in values)
            warn_if_few(min(real.count, generated.count))
            result.values[metric] = frechet_distance(real, generated)
        elif metric in POOLED:
            result.values[metric] = mean_over_frames(values, [record["frames"] for record in found])
        else:
            result.values[metric] = float(np.mean(values))


def _results_file(options: EvaluateOptions, folder: str, kind: str) -> Optional[Path]:
    """The file of the records of a folder's videos, which are generated or real ones."""
    if options.output_dir is None:
        return None
    path = Path(folder).resolve()
    return Path(options.output_dir) / "videos" / f"{kind}-{path.name}-{crc32(str(path).encode()):08x}.jsonl"


def _settings(options: EvaluateOptions, measure: VideoMeasure) -> dict[str, Any]:
    """What the records of videos depend on, as json has it."""
    names = ("num_frames", "sample_rate", "resolution", "crop_size", "fvd_protocol", "real_video_dir")
    flags = sorted({flag for metric in measure.metrics for flag in NEEDS.get(metric, ())})
    return {"metrics": list(measure.metrics), **{name: getattr(options, name) for name in (*names, *flags)}}
