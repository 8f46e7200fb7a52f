"""Checkpoints: a folder that appears complete, with a checksum of every file, or not at all.

    checkpoint-1000/model/            config.json and float32 weights, as PyTorch and sample.py read them
                    model_ema/        the same of the moving averages
                    optimizer.safetensors   the moments of AdamW
                    state.json        where the run stands, its arguments, and the list of the folder's files
                    SHA256SUMS        `sha256sum -c SHA256SUMS` checks the folder

Every checkpoint gets a serial number, one more than the largest in its folder, so that the newest is the one that was
written last, whatever its step. A new one is written as `checkpoint-N.part`. If there is one of the same step, it is
renamed to `checkpoint-N.old` until the new one has its name; after a crash between the two it still counts.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, Optional, Union

from opensora.checkpoint.formats.safetensors import read_safetensors, write_safetensors
from opensora.checkpoint.lazy_tensor import ArrayTensor, LazyTensor
from opensora.errors import UserError
from opensora.models.pretrained import WEIGHTS_NAME, PretrainedModel
from opensora.train.optimizer import Optimizer
from opensora.utils.files import sync
from opensora.utils.logs import logger

UNFINISHED, REPLACED, STATE, SUMS = ".part", ".old", "state.json", "SHA256SUMS"
NAME = re.compile(rf"checkpoint-(0|[1-9][0-9]*)({re.escape(REPLACED)})?")
MOMENTS = ("exp_avg", "exp_avg_sq")
_sound: set[tuple] = set()  # `_identity` of the checkpoints that this process wrote or checked


class ModelAndOptimizer(NamedTuple):
    """A model that is trained, and what trains it."""

    model: PretrainedModel
    optimizer: Optimizer


def checkpoints(output_dir: Union[str, Path]) -> list[Path]:
    """The finished checkpoints in a folder, the one written last first.

    Those of versions that gave no serial number are older than all others, and in the order of their steps. Those whose
    state.json cannot be read come first: they are damaged, and whoever looks for the newest should hear of them.
    """
    found = {}
    for path in Path(output_dir).glob("checkpoint-*"):
        name = parse_name(path)
        if name and path.is_dir():
            step, replaced = name
            if not (replaced and checkpoint_path(output_dir, step).is_dir()):
                found[path] = (_serial(path, unreadable=math.inf), step)
    return sorted(found, key=found.get, reverse=True)


def damage(folder: Path) -> Optional[str]:
    """The first fault of a checkpoint, or None if it is sound."""
    try:
        sums = _read_sums(folder)
        if not sums:
            return f"{SUMS} is empty"
        if STATE in sums and _checksum(folder / STATE) != sums[STATE]:  # first, for it says what else there should be
            return f"{STATE} has changed since it was saved"
        for name in (STATE, *_files(read_state(folder))):
            if name not in sums:
                return f"{name} is missing from {SUMS}"
        for name, checksum in sums.items():
            if _checksum(folder / name) != checksum:
                return f"{name} has changed since it was saved"
    except FileNotFoundError as error:
        return f"{Path(error.filename).relative_to(folder)} is missing"
    except OSError as error:
        return f"{error.filename or folder}: {error.strerror or error}"
    except ValueError as error:
        return str(error)
    return None


def find_checkpoint(output_dir: Union[str, Path], wanted: str) -> Optional[Path]:
    """The checkpoint to resume from: `latest` is the sound one that was written last, None if the folder has none.

    Damaged ones are skipped and named on stderr. `wanted` may also be a checkpoint's name or path.

    Raises:
        FileNotFoundError, UserError: the one that was named is missing or damaged, or all of them are damaged.
    """
    if wanted != "latest":
        folder = named_checkpoint(output_dir, wanted)
        reason = damage(folder)
        if reason:
            raise UserError(f"--resume_from_checkpoint {folder}: {reason}; choose another, or latest")
        return folder
    candidates = checkpoints(output_dir)
    for folder in candidates:
        reason = damage(folder)
        if reason is None:
            return folder
        logger.warning(f"{folder} is damaged ({reason}); trying the one written before it")
    if candidates:
        raise UserError(f"--resume_from_checkpoint: all {len(candidates)} checkpoints in {output_dir} are damaged")
    return None


def named_checkpoint(output_dir: Union[str, Path], name: str) -> Path:
    """The folder of that path, or of that name in `output_dir`."""
    for folder in (Path(name), Path(output_dir) / name):
        for candidate in (folder, Path(f"{folder}{REPLACED}")):  # the second: see the module's docstring
            if candidate.is_dir():
                return candidate
    raise FileNotFoundError(f"--resume_from_checkpoint {name}: no such folder, here or in {output_dir}")


def checkpoint_path(output_dir: Union[str, Path], step: int, replaced: bool = False) -> Path:
    """`replaced`: the name while it gives way to a new one of the same step."""
    return Path(output_dir) / f"checkpoint-{step}{REPLACED if replaced else ''}"


def parse_name(path: Path) -> Optional[tuple[int, bool]]:
    """(step, replaced) as in `checkpoint_path`; None if it is no checkpoint's name."""
    match = NAME.fullmatch(path.name)
    return (int(match[1]), match[2] is not None) if match else None


def read_state(folder: Path) -> dict:
    """The contents of state.json.

    Raises:
        UserError: it cannot be read.
    """
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{STATE} is not readable ({error})") from error
    if not isinstance(state, dict):
        raise UserError(f"{STATE} does not hold a json object")
    return state


def save_checkpoint(
    output_dir: Union[str, Path],
    step: int,
    trained: Mapping[str, ModelAndOptimizer],
    state: dict,
    keep: Optional[int],
    is_main: bool,
) -> None:
    """Writes a checkpoint; all processes call it, one writes. Then removes old ones, see `_rotate`.

    `trained` names the models by the prefix of their folders ("" for `model` and `model_ema`).
    """
    output_dir = Path(output_dir)
    with _new_folder(output_dir, step, is_main) as folder:
        for prefix, (model, optimizer) in trained.items():
            _save_model(folder / f"{prefix}model", model, optimizer.weights(), is_main)
            if optimizer.ema:
                _save_model(folder / f"{prefix}model_ema", model, optimizer.ema_weights(), is_main)
            moments = {
                name: tensor for name, tensor in optimizer.state_tensors().items() if name.split(".", 1)[0] in MOMENTS
            }
            _write(folder / f"{prefix}optimizer.safetensors", moments, is_main)
        numbers = {prefix: optimizer.state_numbers() for prefix, (_, optimizer) in trained.items()}
        if is_main:
            serial = 1 + max((_serial(path, unreadable=0) for path in checkpoints(output_dir)), default=0)
            files = [*_present(folder), STATE]
            state = {"step": step, "serial": serial, **state, "optimizers": numbers, "files": files}
            (folder / STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")
    if is_main:
        final = checkpoint_path(output_dir, step)
        _sound.add(_identity(final))
        if keep is not None:
            _rotate(output_dir, final, keep)


def checkpoint_bytes(trained: Mapping[str, ModelAndOptimizer]) -> int:
    """The size of a checkpoint: float32 weights, their moving averages and the two moments of AdamW."""
    return sum(
        4 * parameter.size * (4 if optimizer.ema else 3)
        for model, optimizer in trained.values()
        for parameter in model.get_parameters()
    )


def load_state(folder: Path, trained: Mapping[str, ModelAndOptimizer], quiet: bool = False) -> dict:
    """Gives the optimizers what was saved; returns the state. The models' weights were loaded from the folder before.

    Moving averages that the checkpoint does not have start from its weights; that is said, unless `quiet`.

    Raises:
        UserError: the checkpoint is of another model.
    """
    state = read_state(folder)
    for prefix, (_, optimizer) in trained.items():
        tensors = dict(read_safetensors(folder / f"{prefix}optimizer.safetensors"))
        for kind, name in (("master", "model"), ("ema", "model_ema")):
            path = folder / f"{prefix}{name}" / WEIGHTS_NAME
            if path.exists():
                tensors.update({f"{kind}.{key}": tensor for key, tensor in read_safetensors(path).items()})
            elif optimizer.ema and not quiet:
                logger.warning(f"{folder} has no {prefix}{name}; averages start from its weights")
        try:
            optimizer.load_state(state["optimizers"][prefix], tensors)
        except ValueError as error:
            raise UserError(f"{folder}: {error}") from error
    return state


def _save_model(folder: Path, model: PretrainedModel, weights: Mapping[str, LazyTensor], is_main: bool) -> None:
    constants = {name: ArrayTensor(value) for name, value in model.constants().items()}
    frozen = {name: ArrayTensor(p.float().asnumpy()) for name, p in model.parameters_and_names() if name not in weights}
    _write(folder / WEIGHTS_NAME, {**constants, **frozen, **weights}, is_main)
    if is_main:
        model.save_config(folder)


def _write(path: Path, tensors: Mapping[str, LazyTensor], is_main: bool) -> None:
    """Reading a divided tensor takes all processes, so those that do not write read too."""
    if is_main:
        write_safetensors(path, tensors)
        return
    for tensor in tensors.values():
        tensor.numpy()


@contextmanager
def _new_folder(output_dir: Path, step: int, is_main: bool) -> Iterator[Path]:
    """A folder that gets its name when it is complete and on the disk."""
    final = checkpoint_path(output_dir, step)
    folder = final.with_name(final.name + UNFINISHED)
    if is_main:
        _clean(output_dir)
        folder.mkdir(parents=True)
    try:
        yield folder
        if is_main:
            _finish(folder, final)
    except BaseException:
        if is_main:
            with suppress(OSError):
                _clean(output_dir)  # a full disk is full of the unfinished one
        raise


def _clean(output_dir: Path) -> None:
    """Removes what an interrupted save left, and gives a checkpoint that it was replacing its name back."""
    for unfinished in output_dir.glob(f"checkpoint-*{UNFINISHED}"):
        _remove(unfinished)
    for replaced in output_dir.glob(f"checkpoint-*{REPLACED}"):
        name = parse_name(replaced)
        if name and replaced.is_dir():
            final = checkpoint_path(output_dir, name[0])
            if os.path.lexists(final):
                _discard(replaced)
            else:
                os.rename(replaced, final)


def _finish(folder: Path, final: Path) -> None:
    """Adds the checksums, brings all to the disk, and renames; a checkpoint of the same step goes after that."""
    lines = [f"{_checksum(folder / name)}  {name}\n" for name in _present(folder)]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")
    for path in [*folder.rglob("*"), folder]:
        sync(path)
    replaced = None
    if final.is_symlink() or (final.exists() and not final.is_dir()):
        aside = free_name(final)
        logger.warning(f"{final} is a link or a file, not a folder; it was renamed to {aside.name}")
        os.rename(final, aside)
    elif final.exists():
        replaced = Path(f"{final}{REPLACED}")
        os.rename(final, replaced)
    os.rename(folder, final)
    sync(final.parent)
    if replaced is not None:
        _discard(replaced)


def _rotate(output_dir: Path, newest: Path, keep: int) -> None:
    """Keeps the one just written and, of the others, those of the `keep` - 1 that were written last and are sound."""
    kept = 1
    for path in checkpoints(output_dir):
        if path == newest:
            continue
        if kept >= keep:
            _discard(path)
        elif _is_sound(path):
            kept += 1
        else:
            logger.warning(f"{path} is damaged and was written before {newest.name}; removing it")
            _discard(path)


def _discard(path: Path) -> None:
    """Removes a checkpoint; under another name first, so that no half of it passes for one. Failing is no reason to end
    a run."""
    try:
        if path.is_symlink():
            path.unlink()
            return
        doomed = path.with_name(path.name + UNFINISHED)
        os.rename(path, doomed)
        _remove(doomed)
    except OSError as error:
        logger.warning(f"{path} could not be removed: {error.strerror or error}")


def _remove(path: Path) -> None:
    """Removes a folder, a file, or a link (not what it leads to)."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def free_name(path: Path) -> Path:
    """A name beside `path` for what has to make room for it."""
    number = 1
    while os.path.lexists(aside := path.with_name(f"{path.name}.aside{number}")):
        number += 1
    return aside


def _serial(folder: Path, unreadable: float) -> float:
    """The serial number, 0 for checkpoints of versions that gave none, `unreadable` if there is no telling."""
    try:
        serial = read_state(folder).get("serial", 0)
    except (OSError, ValueError):
        return unreadable
    return serial if isinstance(serial, int) else unreadable


def _files(state: Mapping) -> list[str]:
    """The files that a checkpoint must have. Earlier versions wrote no list; then it is what every checkpoint has."""
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
    """Name -> checksum. Names that lead out of the folder are an error."""
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
        sums = {name: checksum for checksum, name in (line.split("  ", 1) for line in lines)}
    except ValueError as error:
        raise UserError(f"{SUMS} is damaged") from error
    for name in sums:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise UserError(f"{SUMS} is damaged")
    return sums


def _is_sound(folder: Path) -> bool:
    """Whether a checkpoint is sound; the files are read once only, as long as none changes."""
    identity = _identity(folder)
    if identity not in _sound and damage(folder) is None:
        _sound.add(identity)
    return identity in _sound


def _identity(folder: Path) -> tuple:
    """Changes if a file is added, removed or written to."""
    status = {name: (folder / name).stat() for name in _present(folder)}
    return (str(folder), *((name, one.st_ino, one.st_size, one.st_mtime_ns) for name, one in status.items()))


def _present(folder: Path) -> list[str]:
    """The files in a folder, at any depth, sorted."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _checksum(path: Path) -> str:
    if path.exists() and not path.is_file():  # reading a pipe or a device might not end
        raise UserError(f"{path.name} is not a file")
    with open(path, "rb") as file:
        checksum = hashlib.sha256()
        while piece := file.read(1 << 22):
            checksum.update(piece)
    return checksum.hexdigest()
