"""The options of the videos that a training samples when it validates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Optional

from opensora.config.evaluation import EvaluateOptions
from opensora.config.families import SAMPLERS
from opensora.config.options import check_at_least_one, check_choice, from_mapping, option, option_of
from opensora.errors import UserError


@dataclass(frozen=True)
class ValidationSampleOptions:
    """Videos that validation samples from held-out captions, compared with the held-out videos.

    Raises:
        UserError: values out of range.
    """

    group: ClassVar[str] = "validation samples"

    val_samples: int = option(
        0,
        "held-out captions to sample a video from at each validation: TensorBoard shows them; with --i3d_path FVD, "
        "with --clip_path CLIPSIM is measured; 0: none",
    )
    val_num_sampling_steps: int = option(50, "steps of the sampler")
    val_guidance_scale: Optional[float] = option(None, "guidance scale; default: that of the published model")
    val_sample_method: Optional[str] = option(
        None,
        "the sampler; default: that of the published model, with --rf_scheduler FlowMatchEulerDiscrete",
        choices=SAMPLERS,
    )
    i3d_path: Optional[str] = option_of(EvaluateOptions, "i3d_path")
    fvd_protocol: str = option_of(EvaluateOptions, "fvd_protocol")
    clip_path: Optional[str] = option_of(EvaluateOptions, "clip_path")

    def __post_init__(self):
        check_at_least_one(self, "val_num_sampling_steps")
        if self.val_samples < 0:
            raise UserError(f"--val_samples {self.val_samples}: should be at least 0")
        if self.val_sample_method is not None:
            check_choice("--val_sample_method", self.val_sample_method, SAMPLERS)

    @classmethod
    def of(cls, flags: Mapping[str, Any]) -> Optional[ValidationSampleOptions]:
        """The options in the parsed flags; None without samples.

        Raises:
            UserError: other flags contradict them.
        """
        if not flags["val_samples"]:
            for name in ("i3d_path", "clip_path"):
                if flags[name] is not None:
                    raise UserError(f"--{name} measures the videos of --val_samples: give their number")
            return None
        if not flags["validate"]:
            raise UserError("--val_samples are made when the run validates: add --validate and --val_data")
        for name in ("latent_cache", "text_embed_cache"):
            if flags[name]:
                raise UserError(f"--val_samples need the autoencoder and the text encoder: leave out --{name}")
        if flags["zero_stage"] == 3:
            raise UserError("--val_samples: sampling needs whole blocks, use --zero_stage 2")
        return from_mapping(cls, flags)
