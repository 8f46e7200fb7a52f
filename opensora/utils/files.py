"""Files that appear whole or not at all."""
from __future__ import annotations

import os
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Iterator, Union


@contextmanager
def atomic_write(path: Union[str, Path]) -> Iterator[Path]:
    """Yields a temporary path beside `path`; renamed to it at the end, removed if the body fails.

    The suffix stays the same (video writers choose the format by it); the folder is made if need be. What a killed
    process left of the same file is removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for left_over in path.parent.glob(f".{escape(path.stem)}.*.part{path.suffix}"):
        left_over.unlink()
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        if temporary.exists():
            temporary.unlink()
