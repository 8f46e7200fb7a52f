"""Tables of metrics, and the report of an evaluation."""

from __future__ import annotations

import html
import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

import numpy as np

import opensora
from opensora.config.evaluation import EvaluateOptions
from opensora.eval.curves import draw_curves
from opensora.eval.prompts import record_of
from opensora.utils.files import atomic_write

if TYPE_CHECKING:
    from opensora.eval.run import FolderResult

# What each number is, for the report.
PROTOCOLS = {
    "psnr": "dB, mean over the frames of a video, then over videos; higher is better",
    "ssim": "Gaussian window of 11, mean over frames, then over videos; higher is better",
    "lpips": "AlexNet, averaged over the map of distances, mean over frames, then over videos; lower is better",
    "fvd": "Frechet distance of I3D features, protocol {fvd_protocol}, of all frames; lower is better",
    "clipsim": "mean over frames of the cosine of CLIP's features of frame and prompt, not clamped; higher is better",
    "clip_score": "exp(logit_scale) times clipsim, as in Open-Sora-Plan v1.0 to v1.2; higher is better",
    "temporal_flickering": "VBench: 1 minus the mean change of a pixel between frames; higher is less flicker",
    "motion_amount": "mean optical flow between frames in percent of the shorter side; not a metric of VBench",
    "background_consistency": "VBench: similarity of frames to CLIP, mean over all frames; higher is better",
    "subject_consistency": "VBench: similarity of frames to DINO, mean over all frames; higher is better",
    "aesthetic_quality": "VBench: LAION's aesthetic score of frames / 10; higher is better",
}


def print_table(rows: Mapping[str, Mapping[str, float]]) -> None:
    """Prints one line per video, then the mean over videos. `rows`: video -> {metric: value}, at least one."""
    metrics = list(dict.fromkeys(metric for row in rows.values() for metric in row))
    width = max(len(name) for name in (*rows, f"mean of {len(rows)}"))
    columns = [max(9, len(metric)) for metric in metrics]
    print(" ".join([f"{'video':{width}}", *(f"{metric:>{size}}" for metric, size in zip(metrics, columns))]))
    found = {metric: [row[metric] for row in rows.values() if metric in row] for metric in metrics}
    means = {metric: float(np.mean(values)) for metric, values in found.items()}
    for name, row in {**rows, f"mean of {len(rows)}": means}.items():
        cells = [f"{row[m]:{size}.4f}" if m in row else f"{'-':>{size}}" for m, size in zip(metrics, columns)]
        print(" ".join([f"{name:{width}}", *cells]))


def print_skipped(skipped: Mapping[str, str]) -> None:
    """Prints the skipped files. `skipped`: video -> reason."""
    if skipped:
        print(f"skipped {len(skipped)}:")
    for name, reason in skipped.items():
        print(f"  {name}: {reason}")


def print_folders(results: Sequence[FolderResult]) -> None:
    """Prints the values of the folders, one line each, and why metrics are left out."""
    metrics = list(dict.fromkeys(metric for result in results for metric in result.values))
    width = max(len(result.folder) for result in results)
    columns = [max(9, len(metric)) for metric in metrics]
    print(" ".join([f"{'folder':{width}}", *(f"{metric:>{size}}" for metric, size in zip(metrics, columns))]))
    for result in results:
        cells = [f"{result.values.get(metric, np.nan):{size}.4f}" for metric, size in zip(metrics, columns)]
        print(" ".join([f"{result.folder:{width}}", *cells]))
    for line in left_out_lines(result.left_out for result in results):
        print(line)


def left_out_lines(of_folders: Iterable[Mapping[str, str]]) -> list[str]:
    """A line for each metric that was not computed for a folder, and the reason; equal lines once."""
    pairs = [pair for left_out in of_folders for pair in left_out.items()]
    return list(dict.fromkeys(f"{metric}: not computed: {reason}" for metric, reason in pairs))


def write_report(
    folder: Path,
    options: EvaluateOptions,
    results: Sequence[FolderResult],
    samples: Optional[Mapping[str, Path]] = None,
) -> None:
    """Writes report.json, report.md and report.html, and curves.png, into a folder.

    Args:
        samples: the files of sample.py by the names of the videos; None: these are the videos themselves.
    """
    import mindspore

    content = {
        "date": date.today().isoformat(),
        "versions": {
            "opensora": opensora.__version__,
            "mindspore": mindspore.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "settings": asdict(options),
        "protocols": protocols(options, results),
        "folders": [{**asdict(result), "sampling": sampling_of(result, samples)} for result in results],
    }
    draw_curves(results, folder / "curves.png")
    markdown = as_markdown(content)
    texts = {"report.json": json.dumps(content, indent=1), "report.md": markdown, "report.html": as_html(content)}
    for name, text in texts.items():
        with atomic_write(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def protocols(options: EvaluateOptions, results: Sequence[FolderResult]) -> dict[str, str]:
    """What each computed number is."""
    metrics = dict.fromkeys(metric for result in results for metric in result.values)
    return {metric: PROTOCOLS[metric].format(fvd_protocol=options.fvd_protocol) for metric in metrics}


def sampling_of(result: FolderResult, samples: Optional[Mapping[str, Path]]) -> dict[str, Any]:
    """The seeds and the settings of sample.py, from its records; settings that differ between videos are left out."""
    records = [record_of(samples[name] if samples else Path(result.folder) / name) for name in result.videos]
    records = [record for record in records if isinstance(record.get("arguments"), dict)]
    if not records:
        return {}
    first = records[0]["arguments"]
    same = {name: value for name, value in first.items() if all(r["arguments"].get(name) == value for r in records)}
    return {"seeds": [record.get("noise_seed") for record in records], "arguments": same}


def table_rows(content: Mapping[str, Any]) -> list[list[str]]:
    """The table of folders: the header, then a row per metric."""
    folders = content["folders"]
    rows = [["metric", *(f"{item['folder']} ({len(item['videos'])} videos)" for item in folders), "seconds per video"]]
    for metric in content["protocols"]:
        values = [f"{item['values'][metric]:.4f}" if metric in item["values"] else "" for item in folders]
        seconds = np.mean([item["seconds"][metric] for item in folders if metric in item["seconds"]])
        rows.append([metric, *values, f"{seconds:.2f}"])
    return rows


def notes(content: Mapping[str, Any]) -> list[str]:
    """What the numbers are, and what is missing."""
    lines = [f"{metric}: {text}" for metric, text in content["protocols"].items()]
    lines += left_out_lines(item["left_out"] for item in content["folders"])
    for item in content["folders"]:
        lines += [f"{item['folder']}/{name}: not measured: {reason}" for name, reason in item["skipped"].items()]
    versions = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    return [*lines, f"made on {content['date']} with {versions}; report.json has all settings and the seeds"]


def as_markdown(content: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    header, *rows = table_rows(content)
    lines = ["# Evaluation", "", "| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return (
        "\n".join([*lines, "", "![values of the metrics](curves.png)", "", *(f"- {n}" for n in notes(content))]) + "\n"
    )


def as_html(content: Mapping[str, Any]) -> str:
    """The report as a page without scripts."""
    header, *rows = ([html.escape(cell) for cell in row] for row in table_rows(content))
    table = "".join(f"<th>{cell}</th>" for cell in header)
    table = f"<tr>{table}</tr>" + "".join("<tr>" + "".join(f"<td>{c}</td>" for c in row) + "</tr>" for row in rows)
    listed = "".join(f"<li>{html.escape(note)}</li>" for note in notes(content))
    style = (
        "body{font:15px sans-serif;margin:2em;max-width:70em}td,th{padding:.3em .8em;border-bottom:1px solid #ddd;"
        "text-align:right}td:first-child,th:first-child{text-align:left}img{max-width:100%}"
    )
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>Evaluation</title><style>{style}</style>'
        f"</head><body><h1>Evaluation</h1><table>{table}</table>"
        f'<p><img src="curves.png" alt="values of the metrics"></p><ul>{listed}</ul></body></html>\n'
    )
