"""Checkpoints that survive: a folder that appears whole, with a checksum of every file, or not at all.

    checkpoint-1000/model/            config.json and float32 weights, as PyTorch and sample.py read them
                    model_ema/        the same of the moving averages
                    optimizer.safetensors   the moments of AdamW
                    state.json        where the run stands
                    SHA256SUMS        `sha256sum -c SHA256SUMS` checks the folder
"""
from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, Mapping, NamedTuple, Optional, Union

from opensora.models.loading import WEIGHTS_NAME, PretrainedModel
from opensora.models.safetensors_file import read_safetensors, write_safetensors
from opensora.models.tensor_file import AnyTensor, ArrayTensor
from opensora.train.optimizer import Optimizer

PREFIX, UNFINISHED, SUMS = "checkpoint-", ".part", "SHA256SUMS"
MOMENTS = ("exp_avg", "exp_avg_sq")


class Trained(NamedTuple):
    """A model that is trained, and what trains it."""

    model: PretrainedModel
    optimizer: Optimizer


def checkpoints(output_dir: Union[str, Path]) -> list[Path]:
    """The finished checkpoints in a folder, the newest first."""
    found = [path for path in Path(output_dir).glob(f"{PREFIX}*") if path.name[len(PREFIX):].isdigit()]
    return sorted(found, key=lambda path: -int(path.name[len(PREFIX):]))


def damage(folder: Path) -> Optional[str]:
    """What is wrong with a checkpoint, if something is."""
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
        for line in lines:
            checksum, name = line.split("  ", 1)
            if _checksum(folder / name) != checksum:
                return f"{name} has changed since it was saved"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except ValueError:
        return f"{SUMS} is damaged"
    return None if lines else f"{SUMS} is empty"


def find_checkpoint(output_dir: Union[str, Path], wanted: str) -> Optional[Path]:
    """The checkpoint to go on from: `latest` is the newest sound one in the folder, None where there is none.

    Damaged ones are passed over and named on stderr. `wanted` may also be a checkpoint's name or path.

    Raises:
        FileNotFoundError, ValueError: the one that was named is missing or damaged, or all that there are are damaged.
    """
    if wanted != "latest":
        folder = named_checkpoint(output_dir, wanted)
        reason = damage(folder)
        if reason:
            raise ValueError(f"--resume_from_checkpoint {folder}: {reason}; choose another, or latest")
        return folder
    candidates = checkpoints(output_dir)
    for folder in candidates:
        reason = damage(folder)
        if reason is None:
            return folder
        print(f"note: {folder} is damaged ({reason}); going on from the one before", file=sys.stderr)
    if candidates:
        raise ValueError(f"--resume_from_checkpoint: all {len(candidates)} checkpoints in {output_dir} are damaged")
    return None


def named_checkpoint(output_dir: Union[str, Path], name: str) -> Path:
    """The folder of that path, or of that name in `output_dir`."""
    for folder in (Path(name), Path(output_dir) / name):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"--resume_from_checkpoint {name}: no such folder, here or in {output_dir}")


def checkpoint_path(output_dir: Union[str, Path], step: int) -> Path:
    return Path(output_dir) / f"{PREFIX}{step}"


def read_state(folder: Path) -> dict:
    """Where the run stood."""
    return json.loads((folder / "state.json").read_text())


def save_checkpoint(output_dir: Union[str, Path], step: int, trained: Mapping[str, Trained], state: dict,
                    keep: Optional[int], is_main: bool) -> None:
    """Writes a checkpoint; all processes call it, one writes. Then only the newest `keep` stay.

    `trained` names the models by the prefix of their folders ("" for `model` and `model_ema`).
    """
    with _new_folder(Path(output_dir), step, is_main) as folder:
        for prefix, (model, optimizer) in trained.items():
            _save_model(folder / f"{prefix}model", model, optimizer.weights(), is_main)
            if optimizer.ema:
                _save_model(folder / f"{prefix}model_ema", model, optimizer.ema_weights(), is_main)
            moments = {name: tensor for name, tensor in optimizer.state_tensors().items()
                       if name.split(".", 1)[0] in MOMENTS}
            _write(folder / f"{prefix}optimizer.safetensors", moments, is_main)
        numbers = {prefix: optimizer.state_numbers() for prefix, (_, optimizer) in trained.items()}
        if is_main:
            (folder / "state.json").write_text(json.dumps({"step": step, **state, "optimizers": numbers}, indent=1))
    if is_main and keep is not None:
        for old in checkpoints(output_dir)[keep:]:
            shutil.rmtree(old)


def load_state(folder: Path, trained: Mapping[str, Trained]) -> dict:
    """Gives the optimizers what was saved; returns the state. The models' weights were loaded from the folder before.

    Raises:
        ValueError: the checkpoint is of another model.
    """
    state = read_state(folder)
    for prefix, (_, optimizer) in trained.items():
        tensors = dict(read_safetensors(folder / f"{prefix}optimizer.safetensors"))
        for kind, name in (("master", "model"), ("ema", "model_ema")):
            path = folder / f"{prefix}{name}" / WEIGHTS_NAME
            if path.exists():
                tensors.update({f"{kind}.{key}": tensor for key, tensor in read_safetensors(path).items()})
        try:
            optimizer.load_state(state["optimizers"][prefix], tensors)
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from error
    return state


def _save_model(folder: Path, model: PretrainedModel, weights: Mapping[str, AnyTensor], is_main: bool) -> None:
    constants = {name: ArrayTensor(value) for name, value in model.constants().items()}
    frozen = {name: ArrayTensor(p.float().asnumpy()) for name, p in model.parameters_and_names() if name not in weights}
    _write(folder / WEIGHTS_NAME, {**constants, **frozen, **weights}, is_main)
    if is_main:
        model.save_config(folder)


def _write(path: Path, tensors: Mapping[str, AnyTensor], is_main: bool) -> None:
    """Reading a divided tensor takes all processes, so those that do not write read too."""
    if is_main:
        write_safetensors(path, tensors)
        return
    for tensor in tensors.values():
        tensor.numpy()


@contextmanager
def _new_folder(output_dir: Path, step: int, is_main: bool) -> Iterator[Path]:
    """A folder that gets its name when it is whole and on the disk."""
    final = checkpoint_path(output_dir, step)
    folder = final.with_name(final.name + UNFINISHED)
    if is_main:
        for left_over in output_dir.glob(f"{PREFIX}*{UNFINISHED}"):
            shutil.rmtree(left_over)
        folder.mkdir(parents=True)
    try:
        yield folder
        if is_main:
            _finish(folder, final)
    except BaseException:
        if is_main:
            shutil.rmtree(folder, ignore_errors=True)  # a full disk is full of it
        raise


def _finish(folder: Path, final: Path) -> None:
    """Adds the checksums, has all brought to the disk, and renames."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    (folder / SUMS).write_text("".join(f"{_checksum(path)}  {path.relative_to(folder).as_posix()}\n" for path in files))
    for path in [*folder.rglob("*"), folder]:
        _to_disk(path)
    if final.exists():  # a damaged one of the same step
        shutil.rmtree(final)
    os.replace(folder, final)
    _to_disk(final.parent)


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _checksum(path: Path) -> str:
    with open(path, "rb") as file:
        checksum = hashlib.sha256()
        while piece := file.read(1 << 22):
            checksum.update(piece)
    return checksum.hexdigest()
