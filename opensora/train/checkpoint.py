"""Saving and loading of checkpoints; `opensora.train.checkpoint_folder` describes the folder.

A checkpoint is written as `checkpoint-N.part`, flushed to the disk and renamed. An existing one of the same step is
renamed to `checkpoint-N.old` just before and removed just after; after a crash between the two it still counts.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional, Union

from opensora.checkpoint.formats.safetensors import read_safetensors, write_safetensors
from opensora.checkpoint.lazy_tensor import ArrayTensor, LazyTensor
from opensora.checkpoint.lora.files import LORA_FOLDER, LORA_NAME, tensor_names, write_lora
from opensora.checkpoint.lora.settings import LoRASettings
from opensora.errors import UserError
from opensora.models.lora import adapter_tensors, linear_layers, parameter_tensors
from opensora.models.pretrained import WEIGHTS_NAME, PretrainedModel
from opensora.train.checkpoint_folder import (
    REPLACED,
    STATE,
    SUMS,
    UNFINISHED,
    checkpoint_path,
    checkpoints,
    free_name,
    is_intact,
    list_files,
    mark_intact,
    parse_name,
    read_state,
    serial_number,
)
from opensora.train.optimizer import Optimizer
from opensora.utils.files import checksum, sync
from opensora.utils.logs import logger

MOMENTS = ("exp_avg", "exp_avg_sq")


class ModelAndOptimizer(NamedTuple):
    """A model in training, and its optimizer; `lora`: the settings of the adapters, if only these are trained."""

    model: PretrainedModel
    optimizer: Optimizer
    lora: Optional[LoRASettings] = None

    @property
    def folder(self) -> str:
        """Name of the folder of the weights in a checkpoint."""
        return "model" if self.lora is None else LORA_FOLDER

    def save(self, folder: Path, weights: Mapping[str, LazyTensor], is_main: bool) -> None:
        """Writes trained weights, or their moving averages, with what else a user of the model needs."""
        if self.lora is None:
            _save_model(folder, self.model, weights, is_main)
        else:
            _write(weights, is_main, write_lora, folder / LORA_NAME, adapter_tensors(weights), self.lora)

    def read(self, folder: Path) -> dict[str, LazyTensor]:
        """The tensors that `save` wrote, by the names of the parameters; empty if there is no such folder."""
        path = folder / (WEIGHTS_NAME if self.lora is None else LORA_NAME)
        if not path.exists():
            return {}
        tensors: dict[str, LazyTensor] = dict(read_safetensors(path))
        if self.lora is None:
            return tensors
        layers = [name for name, layer in linear_layers(self.model).items() if layer.lora is not None]
        return parameter_tensors({name: tuple(tensors[one] for one in tensor_names(name)) for name in layers})


def save_checkpoint(
    output_dir: Union[str, Path],
    step: int,
    trained: Mapping[str, ModelAndOptimizer],
    state: dict,
    keep: Optional[int],
    is_main: bool,
) -> None:
    """Writes a checkpoint and removes old ones, see `_rotate`. All processes must call it; the main one writes.

    Args:
        trained: the models, by the prefix of their folders ("" for `model` and `model_ema`).
        state: further content of state.json.
        keep: the number of checkpoints to keep; None: all.
    """
    output_dir = Path(output_dir)
    with _new_folder(output_dir, step, is_main) as folder:
        for prefix, entry in trained.items():
            optimizer = entry.optimizer
            entry.save(folder / f"{prefix}{entry.folder}", optimizer.weights(), is_main)
            if optimizer.ema:
                entry.save(folder / f"{prefix}{entry.folder}_ema", optimizer.ema_weights(), is_main)
            moments = {
                name: tensor for name, tensor in optimizer.state_tensors().items() if name.split(".", 1)[0] in MOMENTS
            }
            _write(moments, is_main, write_safetensors, folder / f"{prefix}optimizer.safetensors", moments)
        numbers = {prefix: entry.optimizer.state_numbers() for prefix, entry in trained.items()}
        if is_main:
            serial = 1 + max((serial_number(path, unreadable=0) for path in checkpoints(output_dir)), default=0)
            files = [*list_files(folder), STATE]
            state = {"step": step, "serial": serial, **state, "optimizers": numbers, "files": files}
            (folder / STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")
    if is_main:
        final = checkpoint_path(output_dir, step)
        mark_intact(final)
        if keep is not None:
            _rotate(output_dir, final, keep)


def checkpoint_bytes(trained: Mapping[str, ModelAndOptimizer]) -> int:
    """The size of a checkpoint: float32 weights, their moving averages and the two moments of AdamW."""
    return sum(
        4 * parameter.size * (4 if optimizer.ema else 3)
        for model, optimizer, lora in trained.values()
        for parameter in model.get_parameters()
        if lora is None or parameter.requires_grad
    )


def load_state(folder: Path, trained: Mapping[str, ModelAndOptimizer], quiet: bool = False) -> dict:
    """Restores the optimizers; returns the state. The models' weights must have been loaded before.

    If the checkpoint has no moving averages, they start from its weights; a note says so, unless `quiet`.

    Raises:
        UserError: the checkpoint belongs to another model.
    """
    state = read_state(folder)
    for prefix, entry in trained.items():
        optimizer = entry.optimizer
        tensors: dict[str, LazyTensor] = dict(read_safetensors(folder / f"{prefix}optimizer.safetensors"))
        for kind, name in (("master", entry.folder), ("ema", f"{entry.folder}_ema")):
            found = entry.read(folder / f"{prefix}{name}")
            if found:
                tensors.update({f"{kind}.{key}": tensor for key, tensor in found.items()})
            elif optimizer.ema and not quiet:
                logger.warning(f"{folder} has no {prefix}{name}; averages start from its weights")
        try:
            optimizer.load_state(state["optimizers"][prefix], tensors)
        except ValueError as error:
            raise UserError(f"{folder}: {error}") from error
    return state


def _save_model(folder: Path, model: PretrainedModel, weights: Mapping[str, LazyTensor], is_main: bool) -> None:
    buffers = {name: ArrayTensor(value) for name, value in model.torch_buffers().items()}
    frozen = {name: ArrayTensor(p.float().asnumpy()) for name, p in model.parameters_and_names() if name not in weights}
    tensors = {**buffers, **frozen, **weights}
    _write(tensors, is_main, write_safetensors, folder / WEIGHTS_NAME, tensors)
    if is_main:
        model.save_config(folder)


def _write(tensors: Mapping[str, LazyTensor], is_main: bool, write: Callable[..., None], *arguments: Any) -> None:
    """Calls `write`, which reads the tensors in their order, on the main process.

    Gathering a sharded tensor takes all processes, so the others read them, too.
    """
    if is_main:
        write(*arguments)
        return
    for tensor in tensors.values():
        tensor.numpy()


@contextmanager
def _new_folder(output_dir: Path, step: int, is_main: bool) -> Iterator[Path]:
    """A folder that gets its name when it is complete and flushed to the disk."""
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
                _clean(output_dir)  # if the disk is full, this frees the space of the unfinished one
        raise


def _clean(output_dir: Path) -> None:
    """Removes the files of an interrupted save, and restores the name of a checkpoint that it was replacing."""
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
    """Adds the checksums, flushes all files, and renames the folder; then removes a checkpoint of the same step."""
    lines = [f"{checksum(folder / name)}  {name}\n" for name in list_files(folder)]
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
    """Keeps the newest and, of the others, the `keep` - 1 intact ones that were written last."""
    kept = 1
    for path in checkpoints(output_dir):
        if path == newest:
            continue
        if kept >= keep:
            _discard(path)
        elif is_intact(path):
            kept += 1
        else:
            logger.warning(f"{path} is corrupt and was written before {newest.name}; removing it")
            _discard(path)


def _discard(path: Path) -> None:
    """Removes a checkpoint, under another name, so that an incomplete one does not count. A failure does not end the
    run."""
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
    """Removes a folder, a file, or a link (not its target)."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
