"""Tables of training data: a csv or parquet file with a sample a row.

    path, text                       the file, relative to where the program runs, and its caption
    num_frames, height, width        of the file; needed where samples are sorted into buckets

Other columns mean nothing here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Union

import numpy as np

from opensora.datasets.broken import printable
from opensora.errors import UserError
from opensora.utils.numbers import is_missing, whole_number
from opensora.utils.text_files import open_csv

TEXT_COLUMNS, SIZE_COLUMNS = ("path", "text"), ("num_frames", "height", "width")


@dataclass(frozen=True)
class VideoTable:
    """Samples by row; `shapes` (N, 3) are frames, height and width, None where they were not asked for."""

    paths: list
    texts: list
    shapes: Optional[np.ndarray]

    def __len__(self) -> int:
        return len(self.paths)


def read_table(path: Union[str, Path, None], sizes: bool = False) -> VideoTable:
    """Reads the table; `sizes`: with the columns that buckets need.

    Raises:
        FileNotFoundError: no such file.
        UserError: not a table, a column is missing, a row has a value that cannot be, or there are no rows.
    """
    if path is None:
        raise UserError("data_path is missing: the csv file of the training data, in the config or by --data-path")
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such table of training data")
    wanted = TEXT_COLUMNS + (SIZE_COLUMNS if sizes else ())
    paths, texts, shapes = [], [], []
    for number, (file, text, *shape) in enumerate(_rows(path, wanted)):
        if is_missing(file):
            raise UserError(f"{path}: row {number}: path is empty")
        paths.append(str(file))
        texts.append("" if is_missing(text) else str(text))
        try:
            shapes += map(whole_number, shape, SIZE_COLUMNS, (1, 1, 1))  # tables made with pandas have 240.0
        except ValueError as error:
            raise UserError(
                f"{path}: row {number}, {printable(paths[-1])[:300]}: {', '.join(SIZE_COLUMNS)} are "
                f"{', '.join(map(str, shape))[:100]}; they should be 1 or more: {error!s:.300}"
            ) from error
    if not paths:
        raise UserError(f"{path}: has no rows")
    shapes = np.array(shapes, np.int64).reshape(-1, len(SIZE_COLUMNS)) if sizes else None
    return VideoTable(paths, texts, shapes)


def _rows(path: Path, columns: tuple) -> Iterator[list]:
    if path.suffix == ".parquet":
        yield from _parquet_rows(path, columns)
        return
    with open_csv(path) as rows:
        _check_columns(path, columns, rows.fieldnames or ())
        for row in rows:
            yield [row[column] for column in columns]


def _parquet_rows(path: Path, columns: tuple) -> Iterator[list]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise UserError(
            f"{path}: reading parquet needs the package pyarrow; install it, or write the table as csv"
        ) from error
    try:
        file = parquet.ParquetFile(path)
        _check_columns(path, columns, file.schema_arrow.names)
        for batch in file.iter_batches(columns=list(columns)):
            yield from map(list, zip(*(batch.column(column).to_pylist() for column in columns)))
    except (ArrowException, OSError) as error:
        raise UserError(f"{path}: not a parquet file that can be read: {error}") from error


def _check_columns(path: Path, wanted: tuple, found: tuple) -> None:
    missing = [column for column in wanted if column not in found]
    if missing:
        raise UserError(
            f"{path}: has no column {', '.join(missing)}; its columns are {', '.join(found)[:300] or 'none'}"
        )
