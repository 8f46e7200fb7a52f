"""The options of every training command."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Optional

from opensora.config.options import check_at_least_one, check_choice, option
from opensora.train.learning_rate import DECAYS


def _resume(text: str) -> Optional[str]:
    """`True` and `latest` mean the newest checkpoint, `False` none."""
    if text.lower() in ("true", "latest"):
        return "latest"
    return None if text.lower() in ("false", "none", "") else text


@dataclass(frozen=True)
class TrainerOptions:
    """Length, learning rate, checkpoints, log and validation of a run.

    Without `val_interval` and `val_interval_steps` validation follows every epoch.

    Raises:
        UserError: an unknown schedule, or a number below 1.
    """

    group: ClassVar[str] = "run"

    output_dir: str = option(help="folder for checkpoints and logs")
    max_train_steps: int = option(1_000_000, "optimizer steps", flags=("--max_steps",))
    start_learning_rate: float = option(1e-4, "learning rate after the warm-up", flags=("--learning_rate",))
    lr_scheduler: str = option("constant", "learning rate schedule", choices=tuple(DECAYS))
    lr_warmup_steps: int = option(0, "optimizer steps of warm-up; constant has none")
    checkpointing_steps: int = option(500, "optimizer steps between checkpoints", flags=("--save_steps",))
    checkpoints_total_limit: Optional[int] = option(
        None, "number of checkpoints to keep in --output_dir, the newest; default: all"
    )
    resume_from_checkpoint: Optional[str] = option(
        None,
        "resume from the newest intact checkpoint in --output_dir, or from this one",
        type=_resume,
        metavar="True|latest|FOLDER",
    )
    allow_changed_arguments: bool = option(
        False, "resume even if model, objective, data or seed differ from those of the checkpoint", takes_value=True
    )
    log_interval: int = option(10, "optimizer steps between log lines")
    validate: bool = option(False, "validate on held-out data during training", takes_value=True)
    val_interval: Optional[int] = option(None, "epochs between validations; default: 1")
    val_interval_steps: Optional[int] = option(
        None, "optimizer steps between validations, instead of or besides --val_interval", flags=("--eval_steps",)
    )

    def __post_init__(self):
        check_choice("--lr_scheduler", self.lr_scheduler, DECAYS)
        check_at_least_one(
            self,
            "max_train_steps",
            "checkpointing_steps",
            "log_interval",
            "val_interval",
            "val_interval_steps",
            "checkpoints_total_limit",
        )

    def validates(self, step: int, epochs_before: int, epochs: int) -> bool:
        """Whether validation follows step `step`; `epochs` are complete after it, `epochs_before` before it."""
        every_steps = self.val_interval_steps
        every_epochs = self.val_interval or (1 if every_steps is None else None)
        return self.validate and (
            step == self.max_train_steps
            or (every_steps is not None and step % every_steps == 0)
            or (every_epochs is not None and epochs // every_epochs > epochs_before // every_epochs)
        )
