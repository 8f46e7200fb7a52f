"""Training of the transformers of Open-Sora v1.0 and v1.1 from a config file."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import numpy as np
from mindspore import Tensor

from opensora.config.families import FAMILIES
from opensora.config.fields import TrainingFields
from opensora.config.lora_training import LoRATrainOptions
from opensora.datasets.bucketed.buckets import Buckets
from opensora.datasets.bucketed.dataset import CONDITIONING, VariableVideoTextDataset, VideoTextDataset, collate
from opensora.datasets.bucketed.mask_ratios import MaskGenerator
from opensora.datasets.bucketed.sampler import BucketSampler
from opensora.datasets.loader import Loader
from opensora.datasets.sampler import BatchSampler, Sampler
from opensora.device import Device, set_seed
from opensora.errors import UserError
from opensora.parallel.process_group import World
from opensora.pipelines.prompt_syntax import clean_prompt
from opensora.pipelines.stdit import FrameNoise
from opensora.pipelines.text_conditions import class_numbers
from opensora.registry import DATASET, TEXT_ENCODER, build, build_stdit_pipeline, check_size
from opensora.schedulers.iddpm import TrainingLoss
from opensora.train.adamw import AdamW
from opensora.train.checkpoint import ModelAndOptimizer
from opensora.train.ema import EMA
from opensora.train.lora import adapt, lora_settings
from opensora.train.optimizer import Optimizer
from opensora.train.t2v import sample_noise
from opensora.train.trainer import StepResult
from opensora.utils.logs import logger

MODEL_SEED = 1024  # of initial weights, timesteps and noise; the `seed` of a config is for the data


@dataclass(frozen=True)
class STDiTTrainOptions:
    """Fields of a training config, by their names there.

    Args:
        ema: decay of the moving average of the weights; None: no average.
        lora: None: all weights are trained.

    Raises:
        UserError: invalid or contradictory fields.
    """

    dataset: Mapping[str, Any]
    bucket_config: Optional[Mapping] = None
    batch_size: Optional[int] = None
    mask_ratios: Optional[Mapping[str, float]] = None
    num_workers: int = TrainingFields.num_workers
    grad_checkpoint: bool = TrainingFields.grad_checkpoint
    grad_clip: Optional[float] = TrainingFields.grad_clip
    ema: Optional[float] = TrainingFields.ema_decay
    zero_stage: int = 0
    sp_size: int = TrainingFields.sp_size
    seed: int = TrainingFields.seed
    lora: Optional[LoRATrainOptions] = None

    def __post_init__(self):
        variable = self.dataset["type"] == "VariableVideoTextDataset"
        if variable and self.bucket_config is None:
            raise UserError("VariableVideoTextDataset needs bucket_config, which lists the shapes of its samples")
        if not variable and self.bucket_config is not None:
            raise UserError(
                f"bucket_config is for VariableVideoTextDataset; samples of {self.dataset['type']} have one shape"
            )
        batch_size = self.batch_size or 0
        if not variable and batch_size < 1:
            raise UserError(f"batch_size {self.batch_size}: {self.dataset['type']} needs 1 or more")
        if self.sp_size < 1 or (not variable and batch_size % self.sp_size):
            raise UserError(
                f"sp_size {self.sp_size} does not divide the batch_size {self.batch_size}; sp_size processes share a "
                f"batch"
            )


class STDiTTraining:
    """See `opensora.train.trainer.Training`; there is no validation.

    The models have no sequence parallelism: `sp_size` consecutive ranks share the samples of a batch.

    Args:
        config: with `model`, `vae`, `text_encoder` and `scheduler`.
        checkpoint: replaces the pretrained weights.

    Raises:
        UserError, OSError: invalid options or data, before models are loaded.
    """

    def __init__(
        self,
        options: STDiTTrainOptions,
        config: Mapping[str, Any],
        device: Device,
        world: World,
        checkpoint: Optional[Path],
    ):
        self.options, self.world = options, world
        if world.size % options.sp_size:
            raise UserError(f"sp_size {options.sp_size} does not divide {world.size} processes")
        self.masks = MaskGenerator(options.mask_ratios) if options.mask_ratios else None
        dataset: VideoTextDataset = build(options.dataset, DATASET)
        sampler = self.make_sampler(dataset, show=device.is_main)
        self.loader = Loader(dataset, sampler, collate, options.num_workers)
        video_size: tuple = (None, None, None)
        is_v1_0 = FAMILIES[config["model"]["type"]].fixed_size
        self.cleans_captions = is_v1_0  # as its text encoder did; v1.1 expects clean captions in the table
        if is_v1_0:
            video_size = dataset.shape
            check_size(config, video_size)
        if config["text_encoder"]["type"] == "classes":
            class_numbers(dataset.table.texts, build(config["text_encoder"], TEXT_ENCODER).num_classes)

        lora = options.lora
        if lora is not None:
            if not config["model"].get("from_pretrained"):
                raise UserError("lora_rank adapts a pretrained model: give from_pretrained of the model")
            config = {**config, "model": {**config["model"], "weights": lora.weights}}
        elif checkpoint is not None:
            config = {**config, "model": {**config["model"], "from_pretrained": str(checkpoint / "model")}}
        set_seed(MODEL_SEED)
        self.pipeline = build_stdit_pipeline(config, device.dtype, video_size, device.vae_dtype)
        model = self.pipeline.transformer.set_train()
        self.dropout_seed = adapt(model, lora, MODEL_SEED, checkpoint)
        self.dropout = model.config.class_dropout_prob
        self.loss = TrainingLoss(model, self.pipeline.scheduler)
        # Without weight decay and without warm-up of the moving averages.
        self.optimizer = Optimizer(
            model,
            AdamW(adam_epsilon=1e-8, adam_weight_decay=0.0),
            None if options.ema is None else EMA(options.ema, warm_up=False),
            options.grad_clip,
            options.zero_stage,
            world,
            options.grad_checkpoint,
        )
        self.trained = {"": ModelAndOptimizer(model, self.optimizer, lora_settings(lora, model))}
        self.batch, self.samples_per_step = 0, 0
        self.batches = iter(self.loader)

    def make_sampler(self, dataset: VideoTextDataset, show: bool) -> Sampler:
        """The sampler of the dataset; `show`: print the table of buckets."""
        options, world = self.options, self.world
        if not isinstance(dataset, VariableVideoTextDataset):
            batch_size = (options.batch_size or 0) // options.sp_size
            return BatchSampler([np.arange(len(dataset))], batch_size, world.rank, world.size, options.seed)
        buckets = Buckets(options.bucket_config or {})
        group, part = divmod(world.rank, options.sp_size)
        sampler = BucketSampler(
            dataset.shapes,
            buckets,
            dataset.frame_interval,
            group,
            world.size // options.sp_size,
            options.seed,
            shard=(part, options.sp_size),
        )
        if show:
            logger.info(buckets.table(sampler.assigned(0)))
        return sampler

    def step(self, learning_rate: float) -> StepResult:
        batch = next(self.batches)
        self.samples_per_step = self.world.size * len(batch["text"])
        self.dropout_seed.value = (MODEL_SEED, self.batch, 0, self.world.rank)
        loss = self.optimizer.backward(self.loss, *self.inputs(batch))
        self.batch += 1
        (loss,) = self.world.all_reduce_mean(loss.reshape(1))
        norm, applied = self.optimizer.step(learning_rate)
        return StepResult({"loss": float(loss)}, norm, applied)

    def inputs(self, batch: Mapping) -> tuple:
        """The inputs of `TrainingLoss`. Random values depend on the batch's number and the sample's position among
        those of all processes."""
        generators = [np.random.default_rng([MODEL_SEED, self.batch, int(position)]) for position in batch["positions"]]
        uniform, text_draws = (np.array([generator.random() for generator in generators]) for _ in range(2))
        frames, mask = batch["video"].shape[2], None
        if self.masks is not None:
            seeds = [int(generator.integers(1 << 63)) for generator in generators]
            masks = [self.masks.draw(frames, random.Random(seed)) for seed in seeds]
            mask = Tensor(np.stack(masks).astype(np.float32))
        pipeline = self.pipeline
        encoder_noise = sample_noise(generators, pipeline.latent_shape(batch["video"].shape[2:]))
        frame_noise = FrameNoise(encoder_noise, pipeline.vae.config.micro_batch_size)
        latents = pipeline.vae.encode(Tensor(batch["video"]), frame_noise)
        noise = Tensor(sample_noise(generators, latents.shape[1:]))
        timesteps = Tensor(pipeline.scheduler.timesteps(uniform))
        conditions = {
            **self.text(batch, text_draws < self.dropout),
            **{name: Tensor(batch[name]) for name in CONDITIONING},
            "x_mask": None if mask is None else mask > 0,
        }
        return (
            latents,
            noise,
            timesteps,
            mask,
            *(conditions.get(name) for name in self.pipeline.transformer.conditions),
        )

    def text(self, batch: Mapping, dropped: np.ndarray) -> dict[str, Tensor]:
        """The model's text inputs; those of dropped captions are the unconditional ones."""
        texts = batch["text"]
        if self.cleans_captions:
            texts = [clean_prompt(text) for text in texts]
        inputs = self.pipeline.text_encoder.inputs(texts)
        if dropped.any():
            inputs["y"][dropped] = self.pipeline.transformer.null_text(1).asnumpy()
        return {name: Tensor(value) for name, value in inputs.items()}

    def state_dict(self) -> dict:
        return {"sampler": self.loader.sampler.state_dict(), "batch": self.batch}

    def load_state_dict(self, state: dict) -> None:
        self.loader.sampler.load_state_dict(state["sampler"])
        self.batch = state["batch"]
        self.batches = iter(self.loader)

    def validate(self) -> tuple[Mapping[str, float], Mapping[str, np.ndarray]]:
        raise UserError("the training of Open-Sora's models has no validation; leave out validate")
