"""The fields of config files and the flags that override them: a field here has its flag and its documentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Optional

from opensora.config.acceleration import AccelerationOptions
from opensora.config.device import DEVICE_HELP, MODE_HELP
from opensora.config.lora import LoRAOptions, parse_loras
from opensora.config.lora_training import LoRATrainOptions
from opensora.config.options import option, option_of, seed
from opensora.errors import UserError

SEED = 42
LONGEST_SAMPLE_NAME = 50  # bytes

_field = partial(option, flag=False)  # of the file alone


@dataclass(frozen=True)
class ComponentFields:
    """The models and the scheduler: dicts with a `type`."""

    model: Mapping[str, Any] = _field(help="the diffusion transformer")
    vae: Mapping[str, Any] = _field(help="the autoencoder")
    text_encoder: Mapping[str, Any] = _field(help="the text encoder")
    scheduler: Mapping[str, Any] = _field(help="the sampler; in training the objective")
    multi_resolution: Any = _field(False, '`"STDiT2"` or off; the model is always conditioned on size, length and rate')


@dataclass(frozen=True)
class MachineFields:
    """Where and how a config is run."""

    dtype: Optional[str] = _field(None, "`fp32`, `bf16` or `fp16`; a CPU runs fp32")
    device: Optional[str] = option(None, DEVICE_HELP)
    mode: Optional[int] = option(None, MODE_HELP)
    jit_level: Optional[str] = _field(None, "compiler level of graph mode")
    max_device_memory: Optional[str] = _field(None, "most device memory to use, such as 59GB")
    use_parallel: bool = option(False, "join the process group of msrun; default: under msrun", takes_value=True)


@dataclass(frozen=True)
class ClipFields:
    """The clips to make.

    Raises:
        UserError: a field of another type or out of range.
    """

    num_frames: int = option(help="frames of a clip; 1 makes images")
    image_size: tuple[int, int] = option(help="height and width in pixels")
    fps: int = option(help="frame rate, on which STDiT2 is conditioned; files play at it divided by frame_interval")
    save_dir: str = option(help="folder for the results")
    frame_interval: int = _field(1, "files play at `fps // frame_interval`; 3 for weights trained on every third frame")
    divide_fps: bool = _field(
        False,
        "condition the model on `fps / frame_interval`, as weights from v1.2 on need it, instead of `fps` as in v1.1",
    )
    batch_size: int = option(1, "prompts per batch")
    seed: int = option(SEED, "random seed", type=seed)
    num_sample: int = option(1, "samples of each prompt")
    sample_name: Optional[str] = option(None, "prefix of the file names, instead of `sample`")
    prompt_as_path: bool = option(
        False, "name the results by their prompts, and keep those that exist already", takes_value=True
    )
    lora: Sequence[Any] = option_of(LoRAOptions, "lora", group=None)
    cache: Optional[str] = option_of(AccelerationOptions, "cache")
    guidance_interval: tuple[float, float] = option_of(AccelerationOptions, "guidance_interval")
    loop: int = option(1, "clips of a long video, for inference-long.py")
    condition_frame_length: Optional[int] = option(
        None, "conditioning frames that each clip takes from the previous one, for inference-long.py"
    )

    def __post_init__(self):
        for name in ("num_frames", "fps", "frame_interval", "batch_size", "num_sample", "loop"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UserError(f"{name} {value!r}: should be an integer of at least 1")
        AccelerationOptions(self.cache, self.guidance_interval)
        parse_loras(self.lora)
        size = self.image_size
        if not isinstance(size, (list, tuple)) or len(size) != 2 or any(type(n) is not int or n < 8 for n in size):
            raise UserError(f"image_size {size!r}: should be height and width, integers of at least 8 pixels")
        if self.sample_name and len(self.sample_name.rsplit("/", 1)[-1].encode()) > LONGEST_SAMPLE_NAME:
            raise UserError(f"sample_name {self.sample_name!r}: should be at most {LONGEST_SAMPLE_NAME} bytes long")
        if self.fps < self.frame_interval:
            raise UserError(
                f"fps {self.fps} divided by frame_interval {self.frame_interval} is less than 1 frame a second"
            )
        overlap = self.condition_frame_length
        if self.loop > 1 and not (type(overlap) is int and 1 <= overlap < self.num_frames):
            raise UserError(
                f"condition_frame_length {overlap!r}: with loop {self.loop} it should be from 1 to "
                f"{self.num_frames - 1}, the frames that a clip takes from the previous one"
            )


@dataclass(frozen=True)
class PromptFields:
    """The prompts and their references."""

    prompt: Optional[Sequence[str]] = option(None, "prompts")
    prompt_path: Optional[str] = option(
        None, "a text file with one prompt per line, or a csv or json file of prompts; the flag overrides `prompt`"
    )
    start_index: Optional[int] = option(None, "index of the first prompt; negative: from the end")
    end_index: Optional[int] = option(None, "index after the last prompt, as in Python slices")
    reference_path: Optional[Sequence[str]] = option(
        None, "for each prompt its images and videos, joined by `;`, for inference-long.py"
    )
    mask_strategy: Optional[Sequence[str]] = option(
        None, "for each prompt the positions of its references, for inference-long.py"
    )
    cache_dir: Optional[str] = _field(None, "folder for references from the web; by default `./cache`")
    allow_local: bool = option(False, "URLs of references may lead to addresses that are not public", takes_value=True)


@dataclass(frozen=True)
class TrainingFields:
    """Data, optimizer, length and results of a training."""

    dataset: Mapping[str, Any] = _field(help="the training data")
    outputs: str = _field(help="folder of the runs")
    lr: float = _field(help="learning rate of Adam, constant")
    bucket_config: Optional[Mapping] = _field(None, "shapes and batch sizes, see Buckets")
    batch_size: Optional[int] = option(None, "samples per batch of one process, without buckets")
    mask_ratios: Optional[Mapping[str, float]] = _field(None, "how often which frames are given, see Mask ratios")
    num_workers: int = _field(4, "processes that read data")
    num_bucket_build_workers: int = _field(1, "no effect: sorting a million samples takes seconds")
    plugin: str = _field(
        "ddp",
        '`"zero2"`: optimizer states and gradients are sharded over all processes; `"zero2-seq"`: with `sp_size`; '
        '`"zero1"`, `"zero3"`, `"ddp"`',
    )
    sp_size: int = _field(
        1, "consecutive processes that share the samples of a batch (Open-Sora) or each video (Open-Sora-Plan)"
    )
    gradient_accumulation_steps: int = _field(1, "batches of each optimizer step, of Open-Sora-Plan's model")
    grad_checkpoint: bool = _field(False, "recompute the blocks in the backward pass: less memory, a third more work")
    grad_clip: Optional[float] = _field(None, "maximum norm of the gradient; without it there is no clipping")
    ema_decay: float = _field(
        0.9999, "decay of the moving average of the weights; with `lora_rank` only if it is given"
    )
    lora_rank: Optional[int] = option_of(LoRATrainOptions, "lora_rank")
    lora_alpha: Optional[float] = option_of(LoRATrainOptions, "lora_alpha")
    lora_dropout: float = option_of(LoRATrainOptions, "lora_dropout")
    lora_target_modules: Optional[Sequence[str]] = option_of(LoRATrainOptions, "lora_target_modules")
    weights: Optional[str] = option_of(LoRATrainOptions, "weights")
    epochs: int = _field(1000, "length of the training, each epoch counted as long as the first")
    max_train_steps: Optional[int] = _field(None, "length of the training in optimizer steps, instead of `epochs`")
    log_every: int = _field(10, "steps between log lines")
    ckpt_every: int = _field(0, "steps between checkpoints; 0: one at the end")
    validate: bool = _field(False, "config files have no validation: only False is accepted")
    seed: int = option(SEED, "random seed of the data", type=seed)
    load: Optional[str] = option(None, "checkpoint to resume from, or the folder of a run: its newest checkpoint")
    start_from_scratch: bool = option(
        False,
        "take weights, moving averages and optimizer from --load, and start with the first epoch",
        takes_value=True,
    )
    allow_changed_arguments: bool = option(
        False, "resume from --load even if model, data, scheduler or seed differ", takes_value=True
    )
    wandb: bool = option(False, "copy the curves to Weights & Biases (`pip install wandb`)", takes_value=True)


@dataclass(frozen=True)
class ComponentFlags:
    """Flags that set a field of a component; see `opensora.config.mmengine.PLACES`."""

    ckpt_path: Optional[str] = option(None, "weights of the model")


@dataclass(frozen=True)
class SamplerFlags:
    """Flags of inference that set a field of the scheduler."""

    num_sampling_steps: Optional[int] = option(None, "steps of the sampler")
    cfg_scale: Optional[float] = option(None, "classifier-free guidance scale")


@dataclass(frozen=True)
class DatasetFlags:
    """Flags of training that set a field of the dataset."""

    data_path: Optional[str] = option(None, "table of the training data")


INFERENCE = (ComponentFields, ComponentFlags, SamplerFlags, ClipFields, PromptFields, MachineFields)
TRAINING = (ComponentFields, ComponentFlags, DatasetFlags, TrainingFields, MachineFields)
