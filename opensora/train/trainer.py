"""The loop of every training: steps, the log, validation, checkpoints."""

from __future__ import annotations

import argparse
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional, Protocol

import numpy as np
from mindspore import Tensor

from opensora.device import Device
from opensora.device import setup as set_up_device
from opensora.errors import UserError
from opensora.parallel.collectives import barrier
from opensora.parallel.process_group import World
from opensora.train.arguments import check_arguments, recorded
from opensora.train.checkpoint import (
    ModelAndOptimizer,
    checkpoint_bytes,
    checkpoint_path,
    checkpoints,
    find_checkpoint,
    load_state,
    named_checkpoint,
    parse_name,
    save_checkpoint,
)
from opensora.train.learning_rate import DECAYS, learning_rate
from opensora.train.log import TrainingLog
from opensora.utils.cli import str2bool
from opensora.utils.folder_lock import check_free_space, exclusive_folder
from opensora.utils.logs import logger
from opensora.utils.stopping import Stopped, StopRequest, graceful_stop

MOST_SKIPPED = 50  # steps in a row without a finite gradient, after which a run stops


@dataclass(frozen=True)
class TrainerOptions:
    """Names and meanings are those of the flags. Without `val_interval` (epochs) and `val_interval_steps` validation
    follows every epoch.

    Raises:
        UserError: numbers that cannot be.
    """

    output_dir: str
    max_train_steps: int = 1_000_000
    start_learning_rate: float = 1e-4
    lr_scheduler: str = "constant"
    lr_warmup_steps: int = 0
    checkpointing_steps: int = 500
    checkpoints_total_limit: Optional[int] = None
    resume_from_checkpoint: Optional[str] = None
    allow_changed_arguments: bool = False
    log_interval: int = 10
    validate: bool = False
    val_interval: Optional[int] = None
    val_interval_steps: Optional[int] = None

    def __post_init__(self):
        if self.lr_scheduler not in DECAYS:
            raise UserError(f"--lr_scheduler {self.lr_scheduler} is not one of {', '.join(DECAYS)}")
        for name in (
            "max_train_steps",
            "checkpointing_steps",
            "log_interval",
            "val_interval",
            "val_interval_steps",
            "checkpoints_total_limit",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name} {value} must be 1 or more")

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        group = parser.add_argument_group("run")
        group.add_argument("--output_dir", required=True, help="for checkpoints and logs")
        group.add_argument("--max_train_steps", "--max_steps", type=int, default=1_000_000, help="optimizer steps")
        group.add_argument(
            "--start_learning_rate", "--learning_rate", type=float, default=1e-4, help="learning rate after the warm-up"
        )
        group.add_argument(
            "--lr_scheduler",
            choices=tuple(DECAYS),
            default="constant",
            help="how the learning rate changes over the run",
        )
        group.add_argument("--lr_warmup_steps", type=int, default=0, help="optimizer steps; not for constant")
        group.add_argument("--checkpointing_steps", "--save_steps", type=int, default=500, help="steps between two")
        group.add_argument(
            "--checkpoints_total_limit",
            type=int,
            help="how many to keep in --output_dir, of those written last; default: all",
        )
        group.add_argument(
            "--resume_from_checkpoint",
            type=_resume,
            metavar="True|latest|FOLDER",
            help="resume from the newest sound checkpoint in --output_dir, or from this one",
        )
        group.add_argument(
            "--allow_changed_arguments",
            type=str2bool,
            nargs="?",
            const=True,
            default=False,
            help="resume even if the model, the objective, the data or the seed are others than before",
        )
        group.add_argument("--log_interval", type=int, default=10, help="steps between two lines on the screen")
        group.add_argument(
            "--validate",
            type=str2bool,
            nargs="?",
            const=True,
            default=False,
            help="compute the loss on held-out data during training",
        )
        group.add_argument("--val_interval", type=int, help="epochs between validations; default: 1")
        group.add_argument(
            "--val_interval_steps",
            "--eval_steps",
            type=int,
            help="steps between validations, instead of or besides --val_interval",
        )

    def checkpoint(self, world: World) -> Optional[Path]:
        """Where to resume from, the same on every process; None: from the beginning."""
        wanted = self.resume_from_checkpoint
        if wanted is None:
            return None
        # Checking takes time: one process does it for all and tells which folder it is.
        failure, found = None, [0.0, -1.0, 0.0]
        if world.rank == 0:
            try:
                folder = find_checkpoint(self.output_dir, wanted)
            except (OSError, ValueError) as error:
                failure, found = error, [1.0, -1.0, 0.0]
            else:
                if folder is not None and wanted == "latest":
                    found = [0.0, *map(float, parse_name(folder))]
        shared = world.sum(Tensor(found if world.rank == 0 else [0.0, 0.0, 0.0])).asnumpy()
        failed, step, replaced = map(int, shared)
        if failed:
            raise failure or ValueError("--resume_from_checkpoint: rank 0 found no sound checkpoint; its log says why")
        if wanted == "latest":
            return checkpoint_path(self.output_dir, step, bool(replaced)) if step >= 0 else None
        return named_checkpoint(self.output_dir, wanted)

    def validates(self, step: int, epochs_before: int, epochs: int) -> bool:
        """Whether validation follows step `step`; `epochs` are complete after it, `epochs_before` before it."""
        every_steps = self.val_interval_steps
        every_epochs = self.val_interval or (1 if every_steps is None else None)
        return self.validate and (
            step == self.max_train_steps
            or (every_steps is not None and step % every_steps == 0)
            or (every_epochs is not None and epochs // every_epochs > epochs_before // every_epochs)
        )


class Report(NamedTuple):
    """What a step did: losses (means over the processes; None before a loss exists), the gradient's norm, whether the
    weights were changed."""

    losses: Mapping[str, Optional[float]]
    grad_norm: float
    applied: bool


class Training(Protocol):
    """What is particular to a training."""

    trained: Mapping[str, ModelAndOptimizer]
    samples_per_step: int  # of all processes

    def step(self, learning_rate: float) -> Report:
        """One optimizer step."""

    def position(self) -> dict:
        """Where in the data the next step begins; the same on all processes. `sampler` is the state of the sampler,
        whose `epoch` counts complete passes."""

    def restore(self, position: dict) -> None:
        """Continues from a `position`. Raises UserError, and changes nothing, if it is one in other data."""

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
    with exclusive_folder(options.output_dir, device.is_main):
        checkpoint = options.checkpoint(world)
        arguments = recorded({**vars(args), "processes": world.size})
        if checkpoint is not None:
            check_arguments(checkpoint, arguments, options.allow_changed_arguments, quiet=not device.is_main)
        training = training_class(training_options, device, world, checkpoint)
        Trainer(training, options, device, checkpoint, arguments).run()


class Trainer:
    """Steps, the log, validation and checkpoints of a training, up to `max_train_steps`.

    Args:
        checkpoint: to resume from; the training's models have its weights already.
        arguments: of the run, see `opensora.train.arguments.recorded`; checkpoints record them.

    Raises:
        UserError: the checkpoint is of another model or other data.
    """

    def __init__(
        self,
        training: Training,
        options: TrainerOptions,
        device: Device,
        checkpoint: Optional[Path] = None,
        arguments: Optional[Mapping[str, Any]] = None,
    ):
        self.training, self.options, self.device, self.arguments = training, options, device, arguments or {}
        self.steps = self.skipped = self.skipped_in_a_row = 0
        self.saved: Optional[Path] = None  # the checkpoint of the present step, if there is one
        if checkpoint is not None:
            self._resume(checkpoint)
        elif device.is_main and checkpoints(options.output_dir):
            limit = f"; --checkpoints_total_limit {options.checkpoints_total_limit} counts them, too"
            logger.warning(
                f"{options.output_dir} holds checkpoints of another run, and this one begins at step 0 (to "
                f"resume, add --resume_from_checkpoint True){limit if options.checkpoints_total_limit else ''}"
            )
        if device.is_main:
            check_free_space(options.output_dir, checkpoint_bytes(training.trained))
        self.log = TrainingLog(options.output_dir, self.steps, options.max_train_steps) if device.is_main else None

    def run(self) -> None:
        """Trains to the end, or until a signal asks for a stop.

        Raises:
            UserError: gradients were not finite in `MOST_SKIPPED` consecutive steps; the state is saved.
            Stopped: a process of the run got SIGTERM, SIGINT or SIGHUP; the state after the step is saved.
        """
        options = self.options
        with graceful_stop("finishing the step and saving a checkpoint; a second signal stops at once") as request:
            while self.steps < options.max_train_steps:
                epochs = self.epochs
                self.step()
                if self.skipped_in_a_row == MOST_SKIPPED:
                    self.save()
                    raise UserError(
                        f"no finite gradient in {MOST_SKIPPED} consecutive steps; the last good weights are in "
                        f"{self.saved}: lower --start_learning_rate, or check the data"
                    )
                stops = self.steps < options.max_train_steps and self.any_process_stops(request)
                if not stops and options.validates(self.steps, epochs, self.epochs):
                    self.validate()
                if stops or self.steps % options.checkpointing_steps == 0 or self.steps == options.max_train_steps:
                    self.save()
                if stops:
                    break
        if self.log:
            self.log.close()
        if self.steps < options.max_train_steps:
            barrier(self.device.world_size)  # no process leaves before the checkpoint is complete
            raise Stopped(
                request.signal or signal.SIGTERM,
                f"stopped after step {self.steps}; to resume from {self.saved}, add --resume_from_checkpoint True",
            )
        if self.log:
            print(
                f"trained {self.steps} steps, {self.skipped} of them skipped; the newest checkpoint is {self.saved}",
                flush=True,
            )

    def any_process_stops(self, request: StopRequest) -> bool:
        """The same on all processes: they have to stop after the same step."""
        world = World(self.device.rank, self.device.world_size)
        return bool(world.mean(Tensor([float(request.signal is not None)]))[0])

    @property
    def epochs(self) -> int:
        """Complete passes over the data."""
        return self.training.position()["sampler"]["epoch"]

    def step(self) -> None:
        """One optimizer step and its place in the log."""
        training, options = self.training, self.options
        rate = learning_rate(
            options.lr_scheduler,
            self.steps,
            options.start_learning_rate,
            options.lr_warmup_steps,
            options.max_train_steps,
        )
        start, waited = time.perf_counter(), training.wait_seconds
        report = training.step(rate)
        seconds = time.perf_counter() - start
        self.saved = None
        self.steps += 1
        self.skipped_in_a_row = 0 if report.applied else self.skipped_in_a_row + 1
        self.skipped += not report.applied
        if self.log:
            self.log.step(
                self.steps,
                {
                    **report.losses,
                    "lr": rate,
                    "grad_norm": report.grad_norm,
                    "samples_per_second": training.samples_per_step / seconds,
                    "data_wait": (training.wait_seconds - waited) / seconds,
                    "skipped": float(not report.applied),
                },
                show=self.steps % options.log_interval == 0 or self.steps == options.max_train_steps,
            )

    def validate(self) -> None:
        values, pictures = self.training.validate()
        if self.log:
            self.log.validation(self.steps, values, pictures)

    def save(self) -> None:
        """Writes a checkpoint of the present step, unless there is one; all processes call it, after any step."""
        if self.saved is None:
            state = {"skipped_steps": self.skipped, "position": self.training.position(), "arguments": self.arguments}
            save_checkpoint(
                self.options.output_dir,
                self.steps,
                self.training.trained,
                state,
                self.options.checkpoints_total_limit,
                self.device.is_main,
            )
            self.saved = checkpoint_path(self.options.output_dir, self.steps)

    def _resume(self, checkpoint: Path) -> None:
        state = load_state(checkpoint, self.training.trained, quiet=not self.device.is_main)
        self.steps, self.skipped = state["step"], state["skipped_steps"]
        position, first = state["position"], self.training.position()
        try:
            self.training.restore(position)
        except ValueError:
            if not self.options.allow_changed_arguments:
                raise
            self.training.restore({**position, "sampler": first["sampler"]})
            if self.device.is_main:
                logger.warning(f"the data are not those of {checkpoint}; they begin with their first epoch")
        if checkpoint.parent.resolve() == Path(self.options.output_dir).resolve():
            self.saved = checkpoint
        if self.device.is_main:
            logger.info(f"going on after step {self.steps}, from {checkpoint}")


def _resume(text: str) -> Optional[str]:
    """`True` and `latest` mean the newest checkpoint, `False` none."""
    if text.lower() in ("true", "latest"):
        return "latest"
    return None if text.lower() in ("false", "none", "") else text
