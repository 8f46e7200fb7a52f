"""Prepares a folder of videos and images with captions for training: annotation, data file, report, contact sheets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Union

from opensora.datasets.media import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from opensora.datasets.media.folders import list_media
from opensora.datasets.prepare.captions import Captions, find_captions
from opensora.datasets.prepare.entries import make_entries, read_captions, write_annotation, write_data_file
from opensora.datasets.prepare.options import PrepareOptions, SelectionFlags
from opensora.datasets.prepare.report import Section, changes, summarize, training_sections, write_report
from opensora.datasets.prepare.sheets import draw_sheets
from opensora.datasets.prepare.survey import SURVEY, Survey
from opensora.datasets.t2v.annotations import Source, read_data_file
from opensora.datasets.t2v.probing import Prober
from opensora.errors import UserError
from opensora.utils.folder_lock import exclusive_folder

ANNOTATION, DATA, REPORT, SHEETS = "annotation.json", "data.txt", "report.md", "contact_sheets"
DATABASE = "files.sqlite"  # of the surveys


def prepare(options: PrepareOptions, flags: SelectionFlags) -> str:
    """Writes the files to the output folder; returns a summary.

    Captions are read from their files at every run. Videos and images are decoded once, and again when their size or
    modification time has changed. A run that is interrupted leaves the former files valid and keeps what it decoded.

    Raises:
        FileNotFoundError: no such folder.
        UserError: no videos or images in it, none with a caption, none that can be read, or invalid caption files.
        OSError: the output folder cannot be written to.
    """
    root, output = options.root, options.output_folder
    names = _media_names(root)
    captions = find_captions(root, names, options.captions, options.caption)
    if not captions.of:
        raise UserError(
            f"{root}: none of {len(names)} videos and images has a caption; write it to "
            f"{Path(names[0]).stem}.txt beside {Path(names[0]).name}, or use --captions FILE or --caption TEXT"
        )
    with exclusive_folder(output), _named_in_errors(output):
        surveys = _survey(root, list(captions.of), output / DATABASE)
        good = {name: survey for name, survey in surveys.items() if isinstance(survey, Survey) and not survey.damage}
        bad = [_reason(name, survey) for name, survey in surveys.items() if name not in good]
        if not good:
            raise UserError(f"{root}: none of {len(bad)} videos and images with captions can be read; {bad[0]}")
        entries = [
            entry
            for name, survey in good.items()
            for entry in make_entries(name, captions.of[name], survey, options.scene_cuts, options.max_seconds)
        ]
        former = read_captions(output / ANNOTATION)
        write_annotation(output / ANNOTATION, entries)
        source = Source(str(root), None, output / ANNOTATION)
        if not _lists(output / DATA, source):
            write_data_file(output / DATA, source)
        shown = draw_sheets(output / SHEETS, root, entries, options.sheet_pages)
        sections = [
            Section("Files", _counts(names, captions, good, entries)),
            *_file_sections(captions, good, bad, options),
            *changes(former, {entry["path"]: entry["cap"] for entry in entries}),
            *training_sections(entries, source, flags),
            Section("Results", _results(output, shown, len(entries))),
        ]
        write_report(output / REPORT, f"Training data of {root}", sections)
    return summarize(output / REPORT, sections)


def _media_names(root: Path) -> list[str]:
    """The videos and images as paths in `root`, without the contact sheets of earlier runs."""
    paths = list_media(root, {"videos": VIDEO_SUFFIXES, "images": IMAGE_SUFFIXES}, recursive=True)
    names = [str(path.relative_to(root)) for path in paths if not _is_sheet(path)]
    if not names:
        raise UserError(f"{root}: no videos or images in this folder, apart from contact sheets of earlier runs")
    return names


def _is_sheet(path: Path) -> bool:
    return path.parent.name == SHEETS and (path.parents[1] / DATABASE).is_file()


def _survey(root: Path, names: Sequence[str], database: Path) -> dict[str, Union[Survey, str]]:
    paths = {name: str(root / name) for name in names}
    with closing(Prober(database, SURVEY)) as prober:
        found = prober.probe(list(paths.values()))
    return {name: _without_folder(found[path], root) for name, path in paths.items()}


def _without_folder(survey: Union[Survey, str], root: Path) -> Union[Survey, str]:
    """Messages begin with the path of the file; in the report it is that in the folder."""
    if isinstance(survey, str):
        return survey.replace(f"{root}/", "", 1)
    return survey._replace(damage=survey.damage.replace(f"{root}/", "", 1))


def _reason(name: str, survey: Union[Survey, str]) -> str:
    text = survey.damage if isinstance(survey, Survey) else survey
    return text if text.startswith(f"{name}: ") else f"{name}: {text}"


def _lists(data: Path, source: Source) -> bool:
    """Whether a data file has a line for this source, with or without a folder of embeddings."""
    try:
        return source in [other._replace(embedding_root=None) for other in read_data_file(data)]
    except (OSError, UserError):
        return False


@contextmanager
def _named_in_errors(output: Path) -> Iterator[None]:
    """Adds the folder to errors of the system that name no file, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.strerror is None or error.filename is not None:
            raise
        raise OSError(f"{output}: {error.strerror}; free some space or choose another --output") from error


def _counts(names: Sequence[str], captions: Captions, good: Mapping[str, Survey], entries: Sequence[dict]) -> list[str]:
    images = sum(name.lower().endswith(IMAGE_SUFFIXES) for name in names)
    lines = [
        f"videos: {len(names) - images}, images: {images}",
        f"with a caption: {len(captions.of)}, of these readable: {len(good)}",
        f"samples: {len(entries)}",
    ]
    seconds = sum(entry.get("duration", 0) for entry in entries)
    return [*lines, f"seconds of video: {seconds:.1f}"] if seconds else lines


def _file_sections(
    captions: Captions, good: Mapping[str, Survey], bad: Sequence[str], options: PrepareOptions
) -> list[Section]:
    cuts = {name: survey.cuts for name, survey in good.items() if survey.cuts}
    turned = [f"{name}: {survey.orientation}" for name, survey in good.items() if survey.orientation]
    use = "a sample of each scene" if options.scene_cuts else "ignored"
    return [
        Section("Without a caption, left out", captions.missing),
        Section("Cannot be read, left out", bad),
        Section("Captions without a file", captions.unknown),
        Section("Turned or mirrored by their container; sizes are those of upright frames", turned),
        Section(
            f"Cuts between scenes, {use}",
            [
                f"{name}: {len(found) + 1} scenes, from frames 0, {', '.join(map(str, found))}"
                for name, found in cuts.items()
            ],
        ),
    ]


def _results(output: Path, shown: int, samples: int) -> list[str]:
    lines = [f"annotations: {output / ANNOTATION}", f"for training: --data {output / DATA}"]
    if shown:
        lines.append(f"contact sheets: {output / SHEETS}, {shown} of {samples} samples (--sheet_pages)")
    return [*lines, f"this report: {output / REPORT}"]
