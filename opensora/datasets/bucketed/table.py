"""Tables of training data: csv or parquet files with one sample per row.

    path, text                       the file, relative to the working directory, and its caption
    num_frames, height, width        of the file; required for buckets

Other columns are ignored. A csv file without a header, as of Open-Sora v1.0, has path and text in its first two
columns; it is recognized by the suffix of the first path.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Union

import numpy as np

from opensora.datasets.broken import printable
from opensora.errors import UserError
from opensora.utils.numbers import is_missing, whole_number
from opensora.utils.text_files import open_csv

TEXT_COLUMNS, SIZE_COLUMNS = ("path", "text"), ("num_frames", "height", "width")


@dataclass(frozen=True)
class VideoTable:
    """Samples by row; `shapes` (N, 3) are frames, height and width, (0, 3) if they were not requested."""

    paths: list[str]
    texts: list[str]
    shapes: np.ndarray

    def __len__(self) -> int:
        return len(self.paths)


def read_table(path: Union[str, Path, None], sizes: bool = False) -> VideoTable:
    """Reads a table.

    Args:
        sizes: also reads the columns that buckets require.

    Raises:
        FileNotFoundError: no such file.
        UserError: not a table, a missing column, an invalid value, or no rows.
    """
    if path is None:
        raise UserError(
            "data_path is missing: set it to the csv file of the training data, in the config or with --data-path"
        )
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such table of training data")
    columns = TEXT_COLUMNS + (SIZE_COLUMNS if sizes else ())
    paths: list[str] = []
    texts: list[str] = []
    numbers: list[int] = []
    for row, (file, text, *shape) in enumerate(_rows(path, columns)):
        if is_missing(file):
            raise UserError(f"{path}: row {row}: path is empty")
        paths.append(str(file))
        texts.append("" if is_missing(text) else str(text))
        try:
            numbers += map(whole_number, shape, SIZE_COLUMNS, (1, 1, 1))  # pandas writes integers as 240.0
        except ValueError as error:
            raise UserError(
                f"{path}: row {row}, {printable(paths[-1])[:300]}: {', '.join(SIZE_COLUMNS)} are "
                f"{', '.join(map(str, shape))[:100]}; they should be 1 or more: {error!s:.300}"
            ) from error
    if not paths:
        raise UserError(f"{path}: has no rows")
    return VideoTable(paths, texts, np.array(numbers, np.int64).reshape(-1, len(SIZE_COLUMNS)))


def _rows(path: Path, columns: Sequence[str]) -> Iterator[list]:
    if path.suffix == ".parquet":
        yield from _parquet_rows(path, columns)
        return
    with open_csv(path) as rows:
        first = rows.fieldnames or ()
        if columns == TEXT_COLUMNS and _is_sample(first):
            rows.fieldnames = TEXT_COLUMNS
            yield list(first[:2])
        else:
            _check_columns(path, columns, first)
        for row in rows:
            yield [row[column] for column in columns]


def _is_sample(row: Sequence[str]) -> bool:
    """Whether the first row of a csv file is not its header."""
    from opensora.datasets.media import IMAGE_SUFFIXES, VIDEO_SUFFIXES  # imports the readers of videos

    return len(row) > 1 and "path" not in row and Path(row[0]).suffix.lower() in VIDEO_SUFFIXES + IMAGE_SUFFIXES


def _parquet_rows(path: Path, columns: Sequence[str]) -> Iterator[list]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise UserError(f"{path}: reading parquet requires the package pyarrow; install it, or use csv") from error
    try:
        file = parquet.ParquetFile(path)
        _check_columns(path, columns, file.schema_arrow.names)
        for batch in file.iter_batches(columns=list(columns)):
            yield from map(list, zip(*(batch.column(column).to_pylist() for column in columns)))
    except (ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable parquet file: {error}") from error


def _check_columns(path: Path, required: Sequence[str], found: Sequence[str]) -> None:
    missing = [column for column in required if column not in found]
    if missing:
        raise UserError(
            f"{path}: has no column {', '.join(missing)}; its columns are {', '.join(found)[:300] or 'none'}"
        )
