"""Training of the diffusion transformer on videos and images with captions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Optional

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from opensora.checkpoint.files import find_weights, open_state, read_config
from opensora.checkpoint.shape_check import check_kind
from opensora.datasets.loader import Loader
from opensora.datasets.sampler import BatchSampler
from opensora.datasets.t2v.dataset import T2VDataset
from opensora.datasets.t2v.options import T2VDataOptions
from opensora.device import Device
from opensora.errors import UserError
from opensora.models import MT5EncoderModel, OpenSoraT2V_v1_3, WFVAEModel, get_vae
from opensora.models.dit.config import PRESETS
from opensora.models.text_encoder.tokenizer import Tokenizer
from opensora.parallel.collectives import AllGather
from opensora.parallel.groups import sequence_group
from opensora.parallel.process_group import World
from opensora.parallel.sequence import UlyssesSequenceParallel
from opensora.pipelines.text import LENGTH_STEP
from opensora.train.adamw import AdamW
from opensora.train.checkpoint import ModelAndOptimizer
from opensora.train.ema import EMA
from opensora.train.objective import DenoisingLoss, ObjectiveOptions, make_objective
from opensora.train.optimizer import Optimizer
from opensora.train.trainer import Report
from opensora.utils.logs import logger

TRAINING, VALIDATION = 0, 1  # what noise is for, part of its seed
ATTENTION_MASK = -2  # its place among the inputs of the loss


@dataclass(frozen=True)
class T2VTrainOptions:
    """Names and meanings are those of the flags of train_t2v_diffusers.py.

    Raises:
        UserError: settings that contradict.
    """

    data: T2VDataOptions
    objective: ObjectiveOptions
    ae: str
    ae_path: str
    text_encoder_name_1: Optional[str]
    model: Optional[str] = None
    pretrained: Optional[str] = None
    model_changes: Mapping = field(default_factory=dict)  # keys of the model's config.json set by flags
    val_data: Optional[T2VDataOptions] = None
    train_batch_size: int = 1
    val_batch_size: int = 1
    dataloader_num_workers: int = 4
    gradient_accumulation_steps: int = 1
    gradient_checkpointing: bool = False
    enable_tiling: bool = False
    vae_fp32: bool = False
    zero_stage: int = 0
    sp_size: int = 1
    train_sp_batch_size: int = 1
    max_grad_norm: Optional[float] = 1.0
    adamw: AdamW = AdamW()
    ema: Optional[EMA] = None
    seed: int = 0

    def __post_init__(self):
        for name in ("train_batch_size", "val_batch_size", "gradient_accumulation_steps", "train_sp_batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} {getattr(self, name)} must be 1 or more")
        if self.model is None and self.pretrained is None:
            raise UserError(f"--model is missing: one of {', '.join(PRESETS)}, or a folder with a config.json")
        shared = self.sp_size * self.train_batch_size
        if self.sp_size > 1 and shared % self.train_sp_batch_size:
            raise UserError(
                f"--train_sp_batch_size {self.train_sp_batch_size} does not divide the {shared} samples "
                f"of a group's batch (sp_size {self.sp_size} x train_batch_size {self.train_batch_size})"
            )
        if self.sp_size > 1 and self.train_batch_size > 1 and not self.data.group_data:
            raise UserError("--sp_size with --train_batch_size above 1 needs --group_data: padding cannot be split")
        if self.text_encoder_name_1 is None and not self.data.text_embed_cache:
            raise UserError("--text_encoder_name_1 is missing; only --text_embed_cache does without")


class T2VTraining:
    """See `opensora.train.trainer.Training`.

    The processes of a sequence-parallel group each load a batch; then they go through the samples of all of them
    together, `train_sp_batch_size` at a time, each a micro-step.

    Args:
        checkpoint: its weights are taken instead of `pretrained`'s.
    """

    model_class = OpenSoraT2V_v1_3
    dataset_class = T2VDataset

    def __init__(self, options: T2VTrainOptions, device: Device, world: World, checkpoint: Optional[Path]):
        self.options, self.device, self.world = options, device, world
        WFVAEModel.published_config(options.ae_path, "--ae_path")
        if not options.data.text_embed_cache:
            MT5EncoderModel.published_config(options.text_encoder_name_1, "--text_encoder_name_1")
        model = self.build_model(checkpoint)
        self.group = sequence_group(device, options.sp_size, model.config.num_attention_heads)
        if self.group.size > 1:
            model.parallelize(UlyssesSequenceParallel(self.group))
            self.gather = AllGather(self.group, 0)
        # Before models that are large and frozen are loaded: what is wrong with the data shows at once.
        tokenizer = None if options.data.text_embed_cache else Tokenizer(options.text_encoder_name_1)
        data = replace(options.data, total_batch_size=self.samples_per_step)
        self.loader = self.make_loader(data, tokenizer, options.train_batch_size)
        self.val_loader = None
        if options.val_data is not None:
            self.val_loader = self.make_loader(options.val_data, tokenizer, options.val_batch_size)
        self.vae = get_vae(options.ae, options.ae_path, ms.float32 if options.vae_fp32 else device.dtype)
        self.vae.set_train(False).enable_tiling(options.enable_tiling)
        self.text_encoder = None
        if tokenizer is not None:
            self.text_encoder = MT5EncoderModel.from_pretrained(options.text_encoder_name_1, dtype=device.dtype)
            self.text_encoder.set_train(False)
            width = self.text_encoder.config.d_model
            if width != model.config.caption_channels:
                raise UserError(
                    f"{options.text_encoder_name_1} has {width} channels, the transformer is made for "
                    f"caption_channels {model.config.caption_channels}"
                )

        self.objective = make_objective(options.objective)
        self.loss = DenoisingLoss(model.set_train())
        self.optimizer = Optimizer(
            model,
            options.adamw,
            options.ema,
            options.max_grad_norm,
            options.zero_stage,
            world,
            options.gradient_checkpointing,
        )
        self.trained = {"": ModelAndOptimizer(model, self.optimizer)}
        self.batch, self.micro_batches_done = -1, self.slices_per_batch  # of the newest batch so many were trained on
        self.sampler_before = self.loader.sampler.state_dict()
        self.slices = self.training_slices(first=0)

    @property
    def slice_size(self) -> int:
        """Samples of a micro-step of a group."""
        return self.options.train_batch_size if self.group.size == 1 else self.options.train_sp_batch_size

    @property
    def slices_per_batch(self) -> int:
        return self.group.size * self.options.train_batch_size // self.slice_size

    @property
    def samples_per_step(self) -> int:
        return self.slice_size * self.group.count * self.options.gradient_accumulation_steps

    @property
    def wait_seconds(self) -> float:
        return self.loader.wait_seconds

    def build_model(self, checkpoint: Optional[Path]) -> OpenSoraT2V_v1_3:
        """The model of the flags, with the checkpoint's, the pretrained or random weights."""
        options = self.options
        if checkpoint is not None:
            return self.continue_from(checkpoint)
        if options.model in PRESETS and not options.model.startswith(self.model_class.__name__):
            raise UserError(f"--model {options.model}: this command trains {self.model_class.__name__}")
        source = options.pretrained
        if options.model in PRESETS:
            config = PRESETS[options.model]
        else:
            config = read_config(options.model or source)
            check_kind(
                config,
                options.model or source,
                (self.model_class.__name__, OpenSoraT2V_v1_3.__name__),
                "--model" if options.model else "--pretrained",
            )
        config = {**config, **options.model_changes}
        if source is not None:
            return self.init_from(source, config)
        return self.model_class(**config).cast(self.device.dtype)

    def continue_from(self, checkpoint: Path) -> OpenSoraT2V_v1_3:
        """The model of a checkpoint, whose configuration counts; flags that say otherwise are an error."""
        source = checkpoint / "model"
        config = read_config(source)
        for name, value in self.options.model_changes.items():
            if config.get(name) != value:
                raise UserError(
                    f"{checkpoint}: was trained with {name} {config.get(name)}, now it is {value}: resume "
                    f"with the same flags, or begin a new run with --pretrained {source}"
                )
        return self.model_class.from_pretrained(source, self.device.dtype, config)

    def init_from(self, source: str, config: Mapping) -> OpenSoraT2V_v1_3:
        """A model with those pretrained weights that it has; others start at random."""
        model = self.model_class(**config).cast(self.device.dtype)
        state = open_state(find_weights(source))
        try:
            missing, unexpected = model.load_torch_state(state, strict=False)
        except ValueError as error:
            raise UserError(
                f"{source}: {error}; name the folder of its config.json, or its preset, with --model"
            ) from error
        if self.device.is_main and (missing or unexpected):
            logger.warning(
                f"{source}: {len(missing)} parameters are not in it and start at random, {len(unexpected)} of its "
                f"tensors are not used"
            )
        return model

    def make_loader(self, data: T2VDataOptions, tokenizer: Optional[Tokenizer], batch_size: int) -> Loader:
        options, world = self.options, self.world
        dataset = self.dataset_class(data, tokenizer, quiet=not self.device.is_main)
        check_same_samples(world, dataset)
        sampler = BatchSampler(dataset.buckets, batch_size, world.rank, world.size, options.seed)
        return Loader(dataset, sampler, dataset.collate(batch_size), options.dataloader_num_workers)

    def step(self, learning_rate: float) -> Report:
        losses = []
        for _ in range(self.options.gradient_accumulation_steps):
            losses.append(self.optimizer.backward(self.loss, *next(self.slices)))
        (loss,) = self.world.mean(ops.stack(losses).mean().reshape(1))
        norm, applied = self.optimizer.step(learning_rate)
        return Report({"loss": float(loss)}, norm, applied)

    @property
    def sharing(self) -> list[int]:
        """How a batch is shared, on which its slices depend."""
        return [self.world.size, self.group.size, self.slice_size]

    def position(self) -> dict:
        if self.micro_batches_done == self.slices_per_batch:
            place = {"sampler": self.loader.sampler.state_dict(), "batch": self.batch + 1, "slices": 0}
        else:
            place = {"sampler": self.sampler_before, "batch": self.batch, "slices": self.micro_batches_done}
        return {**place, "sharing": self.sharing}

    def restore(self, position: dict) -> None:
        """A batch that was begun is gone on with; where it is shared in another way now, it is begun again."""
        self.loader.sampler.load_state_dict(position["sampler"])
        self.batch = position["batch"] - 1
        self.slices = self.training_slices(first=position["slices"] if position["sharing"] == self.sharing else 0)

    def training_slices(self, first: int) -> Iterator[tuple]:
        """The inputs of micro-steps, without end, from slice `first` of the next batch on."""
        batches = iter(self.loader)
        while True:
            self.sampler_before = self.loader.sampler.state_dict()
            batch = next(batches)
            self.batch += 1
            inputs = self.shared(self.inputs(batch, TRAINING, self.batch))
            for i in range(first, self.slices_per_batch):
                self.micro_batches_done = i + 1
                yield tuple(x if x is None else x[i * self.slice_size : (i + 1) * self.slice_size] for x in inputs)
            first = 0

    def inputs(self, batch: Mapping, purpose: int, number: int) -> tuple:
        """What the loss takes, of the samples of this process. What is random follows from the seed, the batch's
        number and the sample's place among those of all processes, so it does not depend on who draws it."""
        positions = batch["positions"]
        generators = [np.random.default_rng([self.options.seed, purpose, number, int(place)]) for place in positions]
        uniform = np.array([generator.random() for generator in generators])
        timesteps = self.objective.timesteps(uniform, positions, self.world.size * len(positions))
        latents = self.encode(batch["pixels"], generators)
        eps = draw(generators, latents.shape[1:])
        if self.options.objective.noise_offset:
            eps += np.float32(self.options.objective.noise_offset) * draw(generators, (latents.shape[1], 1, 1, 1))
        mask = batch["attention_mask"]
        return (
            latents,
            Tensor(eps),
            *map(Tensor, self.objective.coefficients(timesteps)),
            *self.text(batch),
            None if mask is None else Tensor(mask),
            self.condition(batch, generators),
        )

    def condition(self, batch: Mapping, generators: Sequence[np.random.Generator]) -> Optional[Tensor]:
        """What the model is given beside the noisy latents."""
        return None

    def encode(self, pixels: np.ndarray, generators: Sequence[np.random.Generator]) -> Tensor:
        """Videos (B, 3, T, H, W) in [-1, 1] -> latents, drawn from their posterior, of about unit variance."""
        posterior = self.vae.encode(Tensor(pixels).astype(self.vae.dtype))
        noise = Tensor(draw(generators, posterior.mean.shape[1:])).astype(self.vae.dtype)
        return self.vae.normalize(posterior.sample(noise).float())

    def text(self, batch: Mapping) -> tuple[Tensor, Tensor]:
        """States (B, 1, L, D) and mask (B, 1, L); L is cut to what this process needs, except where it is shared."""
        mask = batch["cond_mask"]
        length = mask.shape[-1]
        if self.group.size == 1:
            length = min(length, -(-int(mask.sum(-1).max()) // LENGTH_STEP) * LENGTH_STEP)
        mask = Tensor(np.ascontiguousarray(mask[..., :length]))
        if self.text_encoder is None:
            return Tensor(np.ascontiguousarray(batch["cond"][:, :, :length])), mask
        ids = Tensor(np.ascontiguousarray(batch["input_ids"][:, 0, :length]))
        return self.text_encoder(ids, mask[:, 0]).expand_dims(1), mask

    def shared(self, inputs: tuple) -> tuple:
        """The samples of all members of the group, in order of rank."""
        if self.group.size == 1:
            return inputs
        if inputs[ATTENTION_MASK] is not None:
            raise UserError("--sp_size splits whole batches only, and this one is padded: use --group_data")
        return tuple(x if x is None else self.gather(x) for x in inputs)

    def validate(self) -> tuple[Mapping[str, float], Mapping[str, np.ndarray]]:
        """The mean loss of the validation data, once through, with the same noise every time."""
        data, options = self.val_loader, self.options
        sampler = BatchSampler(
            data.dataset.buckets, options.val_batch_size, self.world.rank, self.world.size, options.seed
        )
        loader = Loader(data.dataset, sampler, data.collate, data.num_workers)
        losses = []
        with self.optimizer.weights_outside_blocks():
            for number, batch in enumerate(islice(loader, len(sampler))):
                inputs = self.shared(self.inputs(batch, VALIDATION, number))
                losses.append(self.loss(*inputs))
        (loss,) = self.world.mean(ops.stack(losses).mean().reshape(1))
        return {"loss": float(loss)}, {}


def draw(generators: Sequence[np.random.Generator], shape: tuple) -> np.ndarray:
    """Standard normal noise (B, *shape) float32, of each sample from its own generator."""
    return np.stack([generator.standard_normal(shape, dtype=np.float32) for generator in generators])


def check_same_samples(world: World, dataset: T2VDataset) -> None:
    """Raises UserError where this process has selected other samples than the first one, say of files that change."""
    own = dataset.index.fingerprint
    first = int(world.sum(Tensor([float(own if world.rank == 0 else 0)])).asnumpy()[0])
    if own != first:
        raise UserError(
            f"{dataset.options.data}: this process and the first one have selected different samples: did "
            f"annotations or files change meanwhile, or do the machines see different files?"
        )
