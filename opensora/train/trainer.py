"""The training loop: steps, the log, validation, checkpoints."""

from __future__ import annotations

import signal
import time
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Optional, Protocol

import numpy as np
from mindspore import Tensor

from opensora.datasets.loader import Loader
from opensora.device import Device
from opensora.device import setup as set_up_device
from opensora.errors import UserError
from opensora.parallel.collectives import barrier
from opensora.parallel.process_group import World
from opensora.process.signals import Stopped, StopRequest, graceful_stop
from opensora.train.arguments import check_arguments, recorded
from opensora.train.checkpoint import ModelAndOptimizer, checkpoint_bytes, load_state, save_checkpoint
from opensora.train.checkpoint_folder import checkpoint_path, checkpoints, find_checkpoint, named_checkpoint, parse_name
from opensora.train.learning_rate import learning_rate
from opensora.train.log import TrainingLog
from opensora.train.trainer_options import TrainerOptions
from opensora.utils.folder_lock import check_free_space, exclusive_folder
from opensora.utils.logs import logger

MOST_SKIPPED = 50  # consecutive steps with non-finite gradients, after which a run stops


class StepResult(NamedTuple):
    """The result of an optimizer step.

    Attributes:
        losses: means over the processes; None for a loss that has not been computed yet.
        grad_norm: the norm of the gradients before clipping.
        applied: whether the weights were updated.
    """

    losses: Mapping[str, Optional[float]]
    grad_norm: float
    applied: bool


class Training(Protocol):
    """The interface between a kind of training and the `Trainer`."""

    loader: Loader

    @property
    def trained(self) -> Mapping[str, ModelAndOptimizer]:
        """Models and their optimizers, by the prefix of their folders in a checkpoint."""

    @property
    def samples_per_step(self) -> int:
        """Samples of an optimizer step, of all processes."""

    def step(self, learning_rate: float) -> StepResult:
        """One optimizer step."""

    def state_dict(self) -> dict:
        """The position in the data, the same on all processes; `sampler` is the sampler's state."""

    def load_state_dict(self, state: dict) -> None:
        """Resumes from a `state_dict`. Raises UserError, and changes nothing, if it belongs to other data."""

    def validate(self) -> tuple[Mapping[str, float], Mapping[str, np.ndarray]]:
        """Metrics on held-out data, and images uint8 (H, W, 3).

        Raises:
            UserError: this training has no held-out data.
        """


def resume_point(options: TrainerOptions, world: World) -> Optional[Path]:
    """The checkpoint to resume from, the same on every process; None: start from step 0."""
    wanted = options.resume_from_checkpoint
    if wanted is None:
        return None
    # Checking takes time: one process does it and sends the others the folder it found.
    failure, found = None, [0.0, -1.0, 0.0]
    if world.rank == 0:
        try:
            folder = find_checkpoint(options.output_dir, wanted)
        except (OSError, ValueError) as error:
            failure, found = error, [1.0, -1.0, 0.0]
        else:
            name = parse_name(folder) if folder is not None and wanted == "latest" else None
            if name is not None:
                found = [0.0, *map(float, name)]
    shared = world.all_reduce(Tensor(found if world.rank == 0 else [0.0, 0.0, 0.0])).asnumpy()
    failed, step, replaced = map(int, shared)
    if failed:
        raise failure or UserError("--resume_from_checkpoint: rank 0 found no intact checkpoint; see its log")
    if wanted == "latest":
        return checkpoint_path(options.output_dir, step, bool(replaced)) if step >= 0 else None
    return named_checkpoint(options.output_dir, wanted)


def run(training_class: type, options: TrainerOptions, training_options: Any, args: Namespace) -> None:
    """Runs a training command with its parsed options and flags."""
    device = set_up_device(args)
    world = World(device.rank, device.world_size)
    with exclusive_folder(options.output_dir, device.is_main):
        checkpoint = resume_point(options, world)
        arguments = recorded({**vars(args), "processes": world.size})
        if checkpoint is not None:
            check_arguments(checkpoint, arguments, options.allow_changed_arguments, quiet=not device.is_main)
        training = training_class(training_options, device, world, checkpoint)
        Trainer(training, options, device, checkpoint, arguments).run()


class Trainer:
    """Runs the steps, the log, validation and checkpoints of a training, up to `max_train_steps`.

    Args:
        checkpoint: to resume from; its weights were already loaded into the training's models.
        arguments: of the run, see `opensora.train.arguments.recorded`; checkpoints record them.

    Raises:
        UserError: the checkpoint belongs to another model or other data.
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
        self.steps = self.skipped = self.consecutive_skipped = 0
        self.saved: Optional[Path] = None  # the checkpoint of the current step, if it was saved
        if checkpoint is not None:
            self._resume(checkpoint)
        elif device.is_main and checkpoints(options.output_dir):
            limit = f"; --checkpoints_total_limit {options.checkpoints_total_limit} counts them, too"
            logger.warning(
                f"{options.output_dir} contains checkpoints of another run, and this one starts at step 0 (to "
                f"resume, add --resume_from_checkpoint True){limit if options.checkpoints_total_limit else ''}"
            )
        if device.is_main:
            check_free_space(options.output_dir, checkpoint_bytes(training.trained))
        self.log = TrainingLog(options.output_dir, self.steps, options.max_train_steps) if device.is_main else None

    def run(self) -> None:
        """Trains to the last step, or until a signal requests a stop.

        Raises:
            UserError: gradients were not finite in `MOST_SKIPPED` consecutive steps; the state is saved.
            Stopped: a process of the run got SIGTERM, SIGINT or SIGHUP; the state after the step is saved.
        """
        options = self.options
        with graceful_stop("finishing the step and saving a checkpoint; a second signal stops at once") as request:
            while self.steps < options.max_train_steps:
                epochs = self.epochs
                self.step()
                if self.consecutive_skipped == MOST_SKIPPED:
                    self.save()
                    raise UserError(
                        f"{MOST_SKIPPED} consecutive steps with non-finite gradients; the last good weights are in "
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
            logger.info(
                f"trained {self.steps} steps, {self.skipped} of them skipped; the newest checkpoint is {self.saved}"
            )

    def any_process_stops(self, request: StopRequest) -> bool:
        """Whether any process got a signal; the same on all processes, which have to stop after the same step."""
        world = World(self.device.rank, self.device.world_size)
        return bool(world.all_reduce_mean(Tensor([float(request.signal is not None)]))[0])

    @property
    def epochs(self) -> int:
        """Complete passes over the data."""
        return self.training.state_dict()["sampler"]["epoch"]

    def step(self) -> None:
        """One optimizer step, with its row in the log."""
        training, options = self.training, self.options
        rate = learning_rate(
            options.lr_scheduler,
            self.steps,
            options.start_learning_rate,
            options.lr_warmup_steps,
            options.max_train_steps,
        )
        start, waited = time.perf_counter(), training.loader.wait_seconds
        result = training.step(rate)
        seconds = time.perf_counter() - start
        self.saved = None
        self.steps += 1
        self.consecutive_skipped = 0 if result.applied else self.consecutive_skipped + 1
        self.skipped += not result.applied
        if self.log:
            self.log.step(
                self.steps,
                {
                    **result.losses,
                    "lr": rate,
                    "grad_norm": result.grad_norm,
                    "samples_per_second": training.samples_per_step / seconds,
                    "data_wait": (training.loader.wait_seconds - waited) / seconds,
                    "skipped": float(not result.applied),
                },
                show=self.steps % options.log_interval == 0 or self.steps == options.max_train_steps,
            )

    def validate(self) -> None:
        metrics, images = self.training.validate()
        if self.log:
            self.log.validation(self.steps, metrics, images)

    def save(self) -> None:
        """Writes a checkpoint of the current step, unless it exists; all processes must call it, after any step."""
        if self.saved is None:
            state = {"skipped_steps": self.skipped, "position": self.training.state_dict(), "arguments": self.arguments}
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
        position, first = state["position"], self.training.state_dict()
        try:
            self.training.load_state_dict(position)
        except ValueError:
            if not self.options.allow_changed_arguments:
                raise
            self.training.load_state_dict({**position, "sampler": first["sampler"]})
            if self.device.is_main:
                logger.warning(f"the data are not those of {checkpoint}; they begin with their first epoch")
        if checkpoint.parent.resolve() == Path(self.options.output_dir).resolve():
            self.saved = checkpoint
        if self.device.is_main:
            logger.info(f"resuming after step {self.steps} from {checkpoint}")
