"""Checkpoint folders: their layout, which ones exist, and whether they are intact.

    checkpoint-1000/model/            config.json and float32 weights, as PyTorch and sample.py read them
                    model_ema/        the same for the moving averages
                    optimizer.safetensors   the moments of AdamW
                    state.json        the position of the run, its arguments, and the list of the folder's files
                    SHA256SUMS        `sha256sum -c SHA256SUMS` checks the folder

Every checkpoint gets a serial number, one more than the largest in its folder, so that the newest is the one that was
written last, whatever its step.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Optional, Union

from opensora.errors import UserError
from opensora.models.pretrained import WEIGHTS_NAME
from opensora.utils.files import checksum
from opensora.utils.logs import logger

UNFINISHED, REPLACED, STATE, SUMS = ".part", ".old", "state.json", "SHA256SUMS"
NAME = re.compile(rf"checkpoint-(0|[1-9][0-9]*)({re.escape(REPLACED)})?")
_intact: set[tuple] = set()  # `_identity` of the checkpoints that this process wrote or checked


def checkpoints(output_dir: Union[str, Path]) -> list[Path]:
    """The complete checkpoints in a folder, the one written last first.

    Checkpoints of versions without serial numbers are older than all others, ordered by step. Those with an unreadable
    state.json come first: they are corrupt, and the search for the newest must report them.
    """
    found: dict[Path, tuple[float, int]] = {}
    for path in Path(output_dir).glob("checkpoint-*"):
        name = parse_name(path)
        if name and path.is_dir():
            step, replaced = name
            if not (replaced and checkpoint_path(output_dir, step).is_dir()):
                found[path] = (serial_number(path, unreadable=math.inf), step)
    return sorted(found, key=lambda path: found[path], reverse=True)


def find_corruption(folder: Path) -> Optional[str]:
    """The first integrity error of a checkpoint, or None if it is intact."""
    try:
        sums = _read_sums(folder)
        if not sums:
            return f"{SUMS} is empty"
        if STATE in sums and checksum(folder / STATE) != sums[STATE]:  # first: it lists the files that must exist
            return f"{STATE} has changed since it was saved"
        for name in (STATE, *_required_files(read_state(folder))):
            if name not in sums:
                return f"{name} is missing from {SUMS}"
        for name, expected in sums.items():
            if checksum(folder / name) != expected:
                return f"{name} has changed since it was saved"
    except FileNotFoundError as error:
        return f"{Path(error.filename).relative_to(folder)} is missing"
    except OSError as error:
        return f"{error.filename or folder}: {error.strerror or error}"
    except ValueError as error:
        return str(error)
    return None


def is_intact(folder: Path) -> bool:
    """Whether a checkpoint is intact; its files are read only once, unless they change."""
    identity = _identity(folder)
    if identity not in _intact and find_corruption(folder) is None:
        _intact.add(identity)
    return identity in _intact


def mark_intact(folder: Path) -> None:
    """Records that this process has just written the checkpoint."""
    _intact.add(_identity(folder))


def find_checkpoint(output_dir: Union[str, Path], wanted: str) -> Optional[Path]:
    """The checkpoint to resume from.

    Args:
        wanted: a checkpoint's name or path, or `latest` for the intact one that was written last; corrupt ones are
            skipped and named on stderr.

    Returns:
        None for `latest` if the folder has no checkpoints.

    Raises:
        FileNotFoundError, UserError: the named one is missing or corrupt, or all of them are corrupt.
    """
    if wanted != "latest":
        folder = named_checkpoint(output_dir, wanted)
        reason = find_corruption(folder)
        if reason:
            raise UserError(f"--resume_from_checkpoint {folder}: {reason}; choose another, or latest")
        return folder
    candidates = checkpoints(output_dir)
    for folder in candidates:
        reason = find_corruption(folder)
        if reason is None:
            return folder
        logger.warning(f"{folder} is corrupt ({reason}); trying the one written before it")
    if candidates:
        raise UserError(f"--resume_from_checkpoint: all {len(candidates)} checkpoints in {output_dir} are corrupt")
    return None


def named_checkpoint(output_dir: Union[str, Path], name: str) -> Path:
    """The folder at that path, or with that name in `output_dir`."""
    for folder in (Path(name), Path(output_dir) / name):
        for candidate in (folder, Path(f"{folder}{REPLACED}")):  # see `opensora.train.checkpoint`
            if candidate.is_dir():
                return candidate
    raise FileNotFoundError(f"--resume_from_checkpoint {name}: no such folder, here or in {output_dir}")


def checkpoint_path(output_dir: Union[str, Path], step: int, replaced: bool = False) -> Path:
    """The folder of a step; `replaced`: its name while a new checkpoint of the same step replaces it."""
    return Path(output_dir) / f"checkpoint-{step}{REPLACED if replaced else ''}"


def parse_name(path: Path) -> Optional[tuple[int, bool]]:
    """(step, replaced) as in `checkpoint_path`; None if the name is not a checkpoint's."""
    match = NAME.fullmatch(path.name)
    return (int(match[1]), match[2] is not None) if match else None


def read_state(folder: Path) -> dict:
    """The content of state.json.

    Raises:
        UserError: it is not a json object.
    """
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{STATE} is not readable ({error})") from error
    if not isinstance(state, dict):
        raise UserError(f"{STATE} is not a json object")
    return state


def serial_number(folder: Path, unreadable: float) -> float:
    """The serial number, 0 for checkpoints of versions without, `unreadable` if state.json cannot be read."""
    try:
        serial = read_state(folder).get("serial", 0)
    except (OSError, ValueError):
        return unreadable
    return serial if isinstance(serial, int) else unreadable


def list_files(folder: Path) -> list[str]:
    """The files in a folder, at any depth, sorted."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def free_name(path: Path) -> Path:
    """An unused name next to `path`, to rename the file or folder at `path` to."""
    number = 1
    while os.path.lexists(aside := path.with_name(f"{path.name}.aside{number}")):
        number += 1
    return aside


def _required_files(state: Mapping) -> list[str]:
    """The files that a checkpoint must have. Earlier versions wrote no list: then those that every checkpoint has."""
    if "files" not in state:
        return [
            f"{prefix}{name}"
            for prefix in state.get("optimizers", ())
            for name in ("model/config.json", f"model/{WEIGHTS_NAME}", "optimizer.safetensors")
        ]
    files = state["files"]
    if not isinstance(files, list) or not all(isinstance(name, str) for name in files):
        raise UserError(f"{STATE} does not list the files")
    return files


def _read_sums(folder: Path) -> dict[str, str]:
    """Name -> checksum. Names outside the folder are an error."""
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
        sums = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    except ValueError as error:
        raise UserError(f"{SUMS} is corrupt") from error
    for name in sums:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise UserError(f"{SUMS} is corrupt")
    return sums


def _identity(folder: Path) -> tuple:
    """A value that changes if a file is added, removed or written to."""
    status = {name: (folder / name).stat() for name in list_files(folder)}
    return (str(folder), *((name, one.st_ino, one.st_size, one.st_mtime_ns) for name, one in status.items()))
