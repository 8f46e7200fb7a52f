"""Training of STDiT2, Open-Sora v1.1's transformer, by a config file."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import numpy as np
from mindspore import Tensor

from opensora.datasets.bucketed.buckets import Buckets
from opensora.datasets.bucketed.dataset import NUMBERS, VariableVideoTextDataset, VideoTextDataset, collate
from opensora.datasets.bucketed.mask_ratios import MaskGenerator
from opensora.datasets.bucketed.sampler import BucketSampler
from opensora.datasets.loader import Loader
from opensora.datasets.sampler import BatchSampler, Sampler
from opensora.device import Device, set_seed
from opensora.errors import UserError
from opensora.parallel.process_group import World
from opensora.pipelines.stdit import FrameNoise, STDiTPipeline
from opensora.registry import DATASET, build
from opensora.schedulers.iddpm import TrainingLoss
from opensora.train.adamw import AdamW
from opensora.train.checkpoint import ModelAndOptimizer
from opensora.train.ema import EMA
from opensora.train.optimizer import Optimizer
from opensora.train.t2v import draw
from opensora.train.trainer import Report
from opensora.utils.logs import logger

OWN_SEED = 1024  # of initial weights, timesteps and noise; a config's seed is that of its data


@dataclass(frozen=True)
class STDiTTrainOptions:
    """Fields of a training config, by their names there.

    Raises:
        UserError: fields that cannot be, or contradict.
    """

    dataset: Mapping[str, Any]
    bucket_config: Optional[Mapping] = None
    batch_size: Optional[int] = None
    mask_ratios: Optional[Mapping[str, float]] = None
    num_workers: int = 4
    grad_checkpoint: bool = False
    grad_clip: Optional[float] = 1.0
    ema_decay: float = 0.9999
    zero_stage: int = 2
    sp_size: int = 1
    seed: int = 42

    def __post_init__(self):
        variable = self.dataset["type"] == "VariableVideoTextDataset"
        if variable and self.bucket_config is None:
            raise UserError("VariableVideoTextDataset needs bucket_config, which says what its samples are made to")
        if not variable and self.bucket_config is not None:
            raise UserError(
                f"bucket_config is for VariableVideoTextDataset; samples of {self.dataset['type']} have one shape"
            )
        if not variable and (self.batch_size or 0) < 1:
            raise UserError(f"batch_size {self.batch_size}: {self.dataset['type']} needs a number from 1 on")
        if self.sp_size < 1 or (not variable and self.batch_size % self.sp_size):
            raise UserError(
                f"sp_size {self.sp_size} does not divide the batch_size {self.batch_size}, which as many "
                f"processes share"
            )


class STDiTTraining:
    """See `opensora.train.trainer.Training`; there is no validation.

    STDiT2 knows no sequence parallelism: `sp_size` neighbouring processes share the samples of a batch.

    Args:
        config: with `model`, `vae`, `text_encoder` and `scheduler`.
        checkpoint: its weights are taken instead of the pretrained ones.

    Raises:
        UserError, OSError: what is wrong with the options or the data, before models are loaded.
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

        if checkpoint is not None:
            config = {**config, "model": {**config["model"], "from_pretrained": str(checkpoint / "model")}}
        set_seed(OWN_SEED)
        self.pipeline = STDiTPipeline.from_config(config, device.dtype)
        model = self.pipeline.transformer.set_train()
        self.dropout = model.config.class_dropout_prob
        model.y_embedder.dropout = 0.0  # drawn here, so that it follows from the sample's seed, too
        self.loss = TrainingLoss(model, self.pipeline.scheduler)
        # Without weight decay, and with averages that begin at once.
        self.optimizer = Optimizer(
            model,
            AdamW(adam_epsilon=1e-8, adam_weight_decay=0.0),
            EMA(options.ema_decay, warm_up=False),
            options.grad_clip,
            options.zero_stage,
            world,
            options.grad_checkpoint,
        )
        self.trained = {"": ModelAndOptimizer(model, self.optimizer)}
        self.batch, self.samples_per_step = 0, 0
        self.batches = iter(self.loader)

    @property
    def wait_seconds(self) -> float:
        return self.loader.wait_seconds

    @property
    def steps_per_epoch(self) -> int:
        """Of the present one; the draws of buckets make others a little longer or shorter."""
        return len(self.loader.sampler)

    def make_sampler(self, dataset: VideoTextDataset, show: bool) -> Sampler:
        options, world = self.options, self.world
        if not isinstance(dataset, VariableVideoTextDataset):
            return BatchSampler(
                [np.arange(len(dataset))], options.batch_size // options.sp_size, world.rank, world.size, options.seed
            )
        buckets = Buckets(options.bucket_config)
        group, part = divmod(world.rank, options.sp_size)
        sampler = BucketSampler(
            dataset.shapes,
            buckets,
            dataset.frame_interval,
            group,
            world.size // options.sp_size,
            options.seed,
            part=(part, options.sp_size),
        )
        if show:
            logger.info(buckets.table(sampler.assigned(0)))
        return sampler

    def step(self, learning_rate: float) -> Report:
        batch = next(self.batches)
        self.samples_per_step = self.world.size * len(batch["text"])
        loss = self.optimizer.backward(self.loss, *self.inputs(batch))
        self.batch += 1
        (loss,) = self.world.mean(loss.reshape(1))
        norm, applied = self.optimizer.step(learning_rate)
        return Report({"loss": float(loss)}, norm, applied)

    def inputs(self, batch: Mapping) -> tuple:
        """What `TrainingLoss` takes. What is random follows from the batch's number and the sample's place among those
        of all processes."""
        generators = [np.random.default_rng([OWN_SEED, self.batch, int(place)]) for place in batch["positions"]]
        uniform, text_draws = (np.array([generator.random() for generator in generators]) for _ in range(2))
        frames, mask = batch["video"].shape[2], None
        if self.masks is not None:
            mask = Tensor(
                np.stack(
                    [
                        self.masks.draw(frames, random.Random(int(generator.integers(1 << 63))))
                        for generator in generators
                    ]
                ).astype(np.float32)
            )
        pipeline = self.pipeline
        draws = FrameNoise(
            draw(generators, pipeline.latent_shape(batch["video"].shape[2:])), pipeline.vae.config.micro_batch_size
        )
        latents = pipeline.vae.encode(Tensor(batch["video"]), draws)
        noise = Tensor(draw(generators, latents.shape[1:]))
        timesteps = Tensor(pipeline.scheduler.timesteps(uniform))
        return (
            latents,
            noise,
            timesteps,
            *self.text(batch, text_draws < self.dropout),
            *(Tensor(batch[name]) for name in NUMBERS),
            mask,
        )

    def text(self, batch: Mapping, dropped: np.ndarray) -> tuple[Tensor, Tensor]:
        """States (B, 1, L, D), those of no prompt where it is dropped, and mask (B, L)."""
        embedding = self.pipeline.text_encoder(batch["text"])
        states = embedding.states[:, None]
        if dropped.any():
            states[dropped] = self.pipeline.transformer.null_text(1).float().asnumpy()
        return Tensor(states), Tensor(embedding.mask)

    def position(self) -> dict:
        return {"sampler": self.loader.sampler.state_dict(), "batch": self.batch}

    def restore(self, position: dict) -> None:
        self.loader.sampler.load_state_dict(position["sampler"])
        self.batch = position["batch"]
        self.batches = iter(self.loader)
