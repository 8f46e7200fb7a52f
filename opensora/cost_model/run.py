"""The run whose cost is computed, and its configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Optional

from opensora.config.device import PRECISIONS
from opensora.config.families import DEFAULT_VAE, DIT_PRESETS, PLAN_V1_2, VAES
from opensora.config.generations import OLDER_SIZE_STEP, SIZE_STEP
from opensora.config.options import check_at_least_one, check_choice, option
from opensora.errors import UserError
from opensora.pipelines.sizes import check_size

if TYPE_CHECKING:
    from opensora.models.dit.config import TransformerConfig

_, TEMPORAL_STRIDE, SPATIAL_STRIDE = VAES[DEFAULT_VAE]
BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
ZERO_STAGES = (0, 1, 2, 3)


@dataclass(frozen=True)
class Run:
    """The run whose cost is computed. `batch_size` is the number of videos of one group in a step.

    Raises:
        UserError: an unsupported size, an sp_size that does not divide processes or heads, or contradictory settings.
    """

    config: TransformerConfig
    num_frames: int = option(93, "frames of a video, 4n+1")
    height: int = option(352, "frame height in pixels")
    width: int = option(640, "frame width in pixels")
    sp_size: int = 1
    world_size: int = 1
    precision: str = option("bf16", "dtype of weights and activations", choices=PRECISIONS)
    batch_size: int = option(1, "videos that a group shares in a step")
    max_sequence_length: int = option(512, "maximum number of text tokens")
    guidance_scale: float = option(1.0, "guidance scale; above 1 sampling runs every video twice")
    training: bool = option(False, "a training step instead of a denoising step")
    zero_stage: int = option(
        0,
        "in training shard over the processes 1: optimizer states, 2: gradients too, 3: weights too",
        choices=ZERO_STAGES,
    )
    gradient_checkpointing: bool = option(False, "in training recompute the blocks in the backward pass")
    lora_rank: Optional[int] = option(None, "in training: train LoRA of this rank on all attention layers")
    frozen_weights: Optional[str] = None  # how LoRA training holds the weights, one of the formats of --weights
    caches_blocks: bool = False  # with --cache first_block

    def __post_init__(self):
        from opensora.models.dit.config import Transformer2DConfig

        step = OLDER_SIZE_STEP if isinstance(self.config, Transformer2DConfig) else SIZE_STEP
        check_size(self.num_frames, self.height, self.width, TEMPORAL_STRIDE, step)
        check_at_least_one(self, "world_size", "batch_size", "max_sequence_length", "lora_rank")
        check_choice("--precision", self.precision, PRECISIONS)
        check_choice("--zero_stage", self.zero_stage, ZERO_STAGES)
        if self.training and self.guidance_scale > 1:
            raise UserError(f"--guidance_scale {self.guidance_scale} is for sampling: leave it out, or --training")
        for name in ("zero_stage", "gradient_checkpointing", "lora_rank"):
            if getattr(self, name) and not self.training:
                raise UserError(f"--{name} is for training: add --training, or leave it out")
        from opensora.parallel.groups import check_sp_size

        check_sp_size(self.sp_size, self.world_size, self.config.num_attention_heads)

    @property
    def latents(self) -> tuple[int, int, int, int]:
        """(C, T, H, W) of one video."""
        return (
            self.config.in_channels,
            (self.num_frames - 1) // TEMPORAL_STRIDE + 1,
            self.height // SPATIAL_STRIDE,
            self.width // SPATIAL_STRIDE,
        )

    @property
    def tokens(self) -> int:
        """S: patches of one video."""
        _, t, h, w = self.latents
        return t * (h // self.config.patch_size) * (w // self.config.patch_size)

    @property
    def own_tokens(self) -> int:
        """s: tokens of one process, with the zero padding that makes S divisible."""
        return -(-self.tokens // self.sp_size)

    @property
    def batch(self) -> int:
        """B: the batch of the transformer's input; guidance doubles it with the negative prompts."""
        return self.batch_size * (2 if self.guidance_scale > 1 else 1)

    @property
    def bytes(self) -> int:
        """Bytes of one element in the precision of the run."""
        return BYTES[self.precision]

    @property
    def forwards(self) -> int:
        """Forward passes through the blocks in a step: gradient checkpointing recomputes them in the backward pass."""
        return 2 if self.gradient_checkpointing else 1


def load_config(model: str) -> TransformerConfig:
    """The configuration of a preset, or of the config.json at a path, of Open-Sora-Plan v1.2 or v1.3.

    Raises:
        UserError: neither of them, or a config.json of another model.
    """
    from opensora.checkpoint.files import read_config
    from opensora.checkpoint.shape_check import check_class, published_class
    from opensora.models.dit import v1_2
    from opensora.models.dit.config import PRESETS, OpenSoraConfig

    if model in PRESETS:
        return OpenSoraConfig.from_dict(PRESETS[model])
    if model in v1_2.PRESETS:
        return v1_2.OpenSoraV1_2Config.from_dict(v1_2.PRESETS[model])
    if not Path(model).exists():
        raise UserError(f"--model {model}: neither a folder nor one of {', '.join((*DIT_PRESETS, PLAN_V1_2))}")
    config = read_config(model)
    counted = (name.split("-")[0] for name in (*DIT_PRESETS, PLAN_V1_2))
    check_class(config, model, tuple(counted), "--model")
    is_v1_2 = published_class(config) == PLAN_V1_2.split("-")[0]
    try:
        return (v1_2.OpenSoraV1_2Config if is_v1_2 else OpenSoraConfig).from_dict(config)
    except ValueError as error:
        raise UserError(f"--model {model}: {error}") from error
