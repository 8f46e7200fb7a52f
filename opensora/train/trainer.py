"""The loop of every training: steps, the log, validation, checkpoints."""
from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Mapping, NamedTuple, Optional, Protocol

import numpy as np
from mindspore import Tensor

from opensora.device import Device
from opensora.device import setup as set_up_device
from opensora.parallel.flat import World
from opensora.train.checkpoint import (Trained, checkpoint_path, find_checkpoint, load_state, named_checkpoint, read_state,
                                       save_checkpoint)
from opensora.train.learning_rate import DECAYS, learning_rate
from opensora.train.log import TrainingLog
from opensora.utils.cli import str2bool

MOST_SKIPPED = 50  # steps in a row without a finite gradient, after which a run stops


@dataclass(frozen=True)
class TrainerOptions:
    """Names and meanings are those of the flags.

    Raises:
        ValueError: numbers that cannot be.
    """

    output_dir: str
    max_train_steps: int = 1_000_000
    start_learning_rate: float = 1e-4
    lr_scheduler: str = "constant"
    lr_warmup_steps: int = 0
    checkpointing_steps: int = 500
    checkpoints_total_limit: Optional[int] = None
    resume_from_checkpoint: Optional[str] = None
    log_interval: int = 10
    validate: bool = False
    val_interval: int = 500

    def __post_init__(self):
        if self.lr_scheduler not in DECAYS:
            raise ValueError(f"--lr_scheduler {self.lr_scheduler} is not one of {', '.join(DECAYS)}")
        for name in ("max_train_steps", "checkpointing_steps", "log_interval", "val_interval", "checkpoints_total_limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} {value} must be 1 or more")

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        group = parser.add_argument_group("run")
        group.add_argument("--output_dir", required=True, help="for checkpoints and logs")
        group.add_argument("--max_train_steps", "--max_steps", type=int, default=1_000_000, help="optimizer steps")
        group.add_argument("--start_learning_rate", "--learning_rate", type=float, default=1e-4,
                           help="learning rate after the warm-up")
        group.add_argument("--lr_scheduler", choices=tuple(DECAYS), default="constant",
                           help="how the learning rate changes over the run")
        group.add_argument("--lr_warmup_steps", type=int, default=0, help="optimizer steps; not for constant")
        group.add_argument("--checkpointing_steps", "--save_steps", type=int, default=500, help="steps between two")
        group.add_argument("--checkpoints_total_limit", type=int, help="how many to keep; default: all")
        group.add_argument("--resume_from_checkpoint", type=_resume, metavar="True|latest|FOLDER",
                           help="go on from the newest sound checkpoint in --output_dir, or from this one")
        group.add_argument("--log_interval", type=int, default=10, help="steps between two lines on the screen")
        group.add_argument("--validate", type=str2bool, nargs="?", const=True, default=False,
                           help="compute the loss on held-out data during training")
        group.add_argument("--val_interval", "--eval_steps", type=int, default=500, help="steps between validations")

    def checkpoint(self, world: World) -> Optional[Path]:
        """Where to go on from, the same on every process; None: from the beginning."""
        wanted = self.resume_from_checkpoint
        if wanted is None:
            return None
        # Checking takes time: one process does it for all and tells the number of the step.
        folder = find_checkpoint(self.output_dir, wanted) if world.rank == 0 else None
        step = -1 if folder is None else read_state(folder)["step"]
        step = int(world.sum(Tensor([float(step if world.rank == 0 else 0)])).asnumpy()[0])
        if wanted == "latest":
            return checkpoint_path(self.output_dir, step) if step >= 0 else None
        return named_checkpoint(self.output_dir, wanted)


class Report(NamedTuple):
    """What a step did: losses (means over the processes), the gradient's norm, whether the weights were changed."""

    losses: Mapping[str, float]
    grad_norm: float
    applied: bool


class Training(Protocol):
    """What is particular to a training."""

    trained: Mapping[str, Trained]
    samples_per_step: int  # of all processes

    def step(self, learning_rate: float) -> Report:
        """One optimizer step."""

    def position(self) -> dict:
        """Where in the data the next step begins; the same on all processes."""

    def restore(self, position: dict) -> None:
        """Goes on from a `position`."""

    def validate(self) -> tuple[Mapping[str, float], Mapping[str, np.ndarray]]:
        """Results on held-out data, and pictures uint8 (H, W, 3)."""

    @property
    def wait_seconds(self) -> float:
        """How long was waited for data, in all."""


def run(training_class: type, parse_options: Callable[[], tuple]) -> None:
    """A training command: `parse_options` gives its options of the run, of the training, and the flags."""
    options, training_options, args = parse_options()
    device = set_up_device(args)
    world = World(device.rank, device.world_size)
    checkpoint = options.checkpoint(world)
    train(training_class(training_options, device, world, checkpoint), options, device, checkpoint)


def train(training: Training, options: TrainerOptions, device: Device, checkpoint: Optional[Path]) -> None:
    """Runs to `max_train_steps`, from a checkpoint whose weights the training's models have already.

    Raises:
        ValueError: gradients were not finite for `MOST_SKIPPED` steps on end; the state before is saved.
    """
    step = skipped = 0
    if checkpoint is not None:
        state = load_state(checkpoint, training.trained)
        step, skipped = state["step"], state["skipped_steps"]
        training.restore(state["position"])
        if device.is_main:
            print(f"going on after step {step}, from {checkpoint}", flush=True)
    log = TrainingLog(options.output_dir, step, options.max_train_steps) if device.is_main else None
    in_a_row = 0

    def save() -> None:
        state = {"skipped_steps": skipped, "position": training.position()}
        save_checkpoint(options.output_dir, step, training.trained, state, options.checkpoints_total_limit,
                        device.is_main)

    while step < options.max_train_steps:
        rate = learning_rate(options.lr_scheduler, step, options.start_learning_rate, options.lr_warmup_steps,
                             options.max_train_steps)
        start, waited = time.perf_counter(), training.wait_seconds
        report = training.step(rate)
        seconds = time.perf_counter() - start
        step += 1
        in_a_row = 0 if report.applied else in_a_row + 1
        skipped += not report.applied
        if in_a_row == MOST_SKIPPED:
            save()
            raise ValueError(f"no finite gradient in {MOST_SKIPPED} steps on end; the weights of the last good step "
                             f"are in {checkpoint_path(options.output_dir, step)}: lower --start_learning_rate, or check "
                             f"the data")
        if log:
            log.step(step, {**report.losses, "lr": rate, "grad_norm": report.grad_norm,
                            "samples_per_second": training.samples_per_step / seconds,
                            "data_wait": (training.wait_seconds - waited) / seconds,
                            "skipped": float(not report.applied)},
                     show=step % options.log_interval == 0 or step == options.max_train_steps)
        if options.validate and (step % options.val_interval == 0 or step == options.max_train_steps):
            values, pictures = training.validate()
            if log:
                log.validation(step, values, pictures)
        if step % options.checkpointing_steps == 0 or step == options.max_train_steps:
            save()
    if log:
        log.close()
        print(f"trained {step} steps, {skipped} of them skipped; the newest checkpoint is "
              f"{checkpoint_path(options.output_dir, step)}", flush=True)


def _resume(text: str) -> Optional[str]:
    """`True` and `latest` mean the newest checkpoint, `False` none."""
    if text.lower() in ("true", "latest"):
        return "latest"
    return None if text.lower() in ("false", "none", "") else text
