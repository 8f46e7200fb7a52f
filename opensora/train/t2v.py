"""Training of the diffusion transformer on videos and images with captions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Optional

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from opensora.config.generations import generation_of
from opensora.datasets.latents.cache import LatentCache
from opensora.datasets.latents.dataset import LatentDataset
from opensora.datasets.latents.manifest import data_settings
from opensora.datasets.loader import Loader
from opensora.datasets.sampler import BatchSampler
from opensora.datasets.t2v.dataset import T2VDataset
from opensora.datasets.t2v.joint import JointDataset
from opensora.datasets.t2v.options import T2VDataOptions
from opensora.device import Device
from opensora.errors import UserError
from opensora.models import LatteT2V, MT5EncoderModel, OpenSoraT2V, OpenSoraT2V_v1_3
from opensora.models.common.distribution import DiagonalGaussian
from opensora.models.common.images import join_images
from opensora.models.text_encoder.tokenizer import Tokenizer
from opensora.models.vaes import VAE, enable_tiling, get_vae, published_vae_config, vae_class
from opensora.parallel.collectives import AllGather
from opensora.parallel.groups import sequence_group
from opensora.parallel.process_group import World
from opensora.parallel.sequence import UlyssesSequenceParallel
from opensora.pipelines import OpenSoraPipeline
from opensora.pipelines.lazy import LazyModel
from opensora.pipelines.text import LENGTH_STEP
from opensora.train.checkpoint import ModelAndOptimizer
from opensora.train.initial_model import build_model, choose_recipe
from opensora.train.latent_cache import cached_posterior, check_cache, open_caches
from opensora.train.lora import adapt, lora_settings
from opensora.train.objective import make_loss, make_objective
from opensora.train.optimizer import Optimizer
from opensora.train.t2v_options import T2VTrainOptions
from opensora.train.trainer import StepResult
from opensora.train.validation_samples import ValidationSamples, sampling_scheduler

TRAINING, VALIDATION = 0, 1  # the purpose of noise, a component of its seed
ATTENTION_MASK = -2  # its index among the inputs of the loss


class T2VTraining:
    """See `opensora.train.trainer.Training`.

    Each process of a sequence-parallel group loads a batch. The group then trains on the samples of all of them
    together, in micro-batches of `train_sp_batch_size`.

    Args:
        checkpoint: replaces the pretrained weights.
    """

    model_classes: Sequence[str] = (OpenSoraT2V_v1_3.__name__, OpenSoraT2V.__name__, LatteT2V.__name__)
    dataset_class: type[T2VDataset] = T2VDataset
    latent_dataset_class: type[LatentDataset] = LatentDataset

    def __init__(self, options: T2VTrainOptions, device: Device, world: World, checkpoint: Optional[Path]):
        self.options, self.device, self.world = options, device, world
        self.recipe = recipe = choose_recipe(options, self.model_classes, checkpoint)
        self.cache, val_cache = open_caches(options, self.cache_settings)
        if options.ae_path is not None:
            published_vae_config(options.ae, options.ae_path)
        uses_states = self.cache is not None or options.data.text_embed_cache
        text_encoder = None if uses_states else options.text_encoder_name_1
        if text_encoder is not None:
            MT5EncoderModel.published_config(text_encoder, "--text_encoder_name_1")
        model = build_model(recipe, options, device, checkpoint)
        self.dropout_seed = adapt(model, options.lora, options.seed, checkpoint)
        self.group = sequence_group(device, options.sp_size, model.config.num_attention_heads)
        if self.group.size > 1:
            model.parallelize(UlyssesSequenceParallel(self.group))
            self.gather = AllGather(self.group, 0)
        # Before the large frozen models are loaded, so that errors in the data are reported at once.
        tokenizer = None if text_encoder is None else Tokenizer(text_encoder)
        cfg = recipe.dropped if options.data.cfg is None else options.data.cfg
        data = replace(options.data, total_batch_size=self.samples_per_step, cfg=cfg)
        self.loader = self.make_loader(data, tokenizer, options.train_batch_size, self.cache)
        self.val_loader: Optional[Loader] = None
        if options.val_data is not None:
            self.val_loader = self.make_loader(options.val_data, tokenizer, options.val_batch_size, val_cache)
        for cache in filter(None, (self.cache, val_cache)):
            check_cache(cache, options, model.config.caption_channels, device)
        self.samples: Optional[ValidationSamples] = None
        if options.val_sampling is not None:
            assert self.val_loader is not None, "the options require it"
            dataset = self.val_loader.dataset
            self.samples = ValidationSamples(options.val_sampling, dataset, self.group, world, options.seed)
        self.vae = self.load_vae()
        self.text_encoder = None
        if text_encoder is not None:
            self.text_encoder = MT5EncoderModel.from_pretrained(text_encoder, dtype=device.dtype)
            self.text_encoder.set_train(False)
            width = self.text_encoder.config.d_model
            if width != model.config.caption_channels:
                raise UserError(
                    f"{text_encoder} has {width} channels, the transformer needs "
                    f"caption_channels {model.config.caption_channels}"
                )

        self.objective = make_objective(options.objective, recipe.learned_variance)
        self.loss = make_loss(self.objective, model.set_train(), options.data.use_image_num)
        self.optimizer = Optimizer(
            model,
            options.adamw,
            options.ema,
            options.max_grad_norm,
            options.zero_stage,
            world,
            options.gradient_checkpointing,
        )
        self.trained = {"": ModelAndOptimizer(model, self.optimizer, lora_settings(options.lora, model))}
        # The latest batch, and how many of its micro-batches were trained on.
        self.batch, self.micro_batches_done = -1, self.micro_batches_per_batch
        self.sampler_before = self.loader.sampler.state_dict()  # of the latest batch
        self.micro_batches = self.micro_batch_inputs(first=0)

    @property
    def micro_batch_size(self) -> int:
        """Samples of a micro-batch of a group."""
        return self.options.train_batch_size if self.group.size == 1 else self.options.train_sp_batch_size

    @property
    def micro_batches_per_batch(self) -> int:
        return self.group.size * self.options.train_batch_size // self.micro_batch_size

    @property
    def samples_per_step(self) -> int:
        return self.micro_batch_size * self.group.count * self.options.gradient_accumulation_steps

    @property
    def cache_settings(self) -> dict[str, Any]:
        """The flags that a latent cache must have been made with."""
        return {**data_settings(self.options.data), "--ae": self.options.ae}

    def load_vae(self) -> VAE:
        """The autoencoder; for a latent cache without weights, because it only scales the latents."""
        options = self.options
        if self.cache is not None:
            return vae_class(options.ae).without_weights(**self.cache.manifest.autoencoder["config"])
        assert options.ae_path is not None, "T2VTrainOptions requires it"
        vae = get_vae(options.ae, options.ae_path, ms.float32 if options.vae_fp32 else self.device.vae_dtype)
        enable_tiling(vae.set_train(False), options.enable_tiling, options.tile_overlap_factor)
        return vae

    def make_loader(
        self, data: T2VDataOptions, tokenizer: Optional[Tokenizer], batch_size: int, cache: Optional[LatentCache]
    ) -> Loader:
        options, world, quiet = self.options, self.world, not self.device.is_main
        if cache is None:
            dataset = (JointDataset if data.use_image_num else self.dataset_class)(data, tokenizer, quiet)
        else:
            dataset = self.latent_dataset_class(data, cache, quiet)
        check_same_samples(world, dataset)
        if self.recipe.one_length:
            check_one_length(dataset, batch_size)
        sampler = BatchSampler(dataset.buckets, batch_size, world.rank, world.size, options.seed)
        return Loader(dataset, sampler, dataset.collate(batch_size), options.dataloader_num_workers)

    def step(self, learning_rate: float) -> StepResult:
        losses = []
        for _ in range(self.options.gradient_accumulation_steps):
            inputs = next(self.micro_batches)
            self.dropout_seed.value = (self.options.seed, self.batch, self.micro_batches_done, self.world.rank)
            losses.append(self.optimizer.backward(self.loss, *inputs))
        (loss,) = self.world.all_reduce_mean(ops.stack(losses).mean().reshape(1))
        norm, applied = self.optimizer.step(learning_rate)
        return StepResult({"loss": float(loss)}, norm, applied)

    @property
    def parallel_layout(self) -> list[int]:
        """The number of processes, the size of a group and of a micro-batch: they determine a batch's micro-batches."""
        return [self.world.size, self.group.size, self.micro_batch_size]

    def state_dict(self) -> dict:
        if self.micro_batches_done == self.micro_batches_per_batch:
            position = {"sampler": self.loader.sampler.state_dict(), "batch": self.batch + 1, "slices": 0}
        else:
            position = {"sampler": self.sampler_before, "batch": self.batch, "slices": self.micro_batches_done}
        return {**position, "sharing": self.parallel_layout}

    def load_state_dict(self, state: dict) -> None:
        """Resumes in the middle of a batch; if the parallel layout has changed, restarts that batch."""
        self.loader.sampler.load_state_dict(state["sampler"])
        self.batch = state["batch"] - 1
        self.micro_batches = self.micro_batch_inputs(
            first=state["slices"] if state["sharing"] == self.parallel_layout else 0
        )

    def micro_batch_inputs(self, first: int) -> Iterator[tuple]:
        """The inputs of micro-batches, endless, starting with micro-batch `first` of the next batch."""
        batches, size = iter(self.loader), self.micro_batch_size
        while True:
            self.sampler_before = self.loader.sampler.state_dict()
            batch = next(batches)
            self.batch += 1
            inputs = self.gather_batch(self.inputs(batch, TRAINING, self.batch))
            for i in range(first, self.micro_batches_per_batch):
                self.micro_batches_done = i + 1
                yield tuple(x if x is None else x[i * size : (i + 1) * size] for x in inputs)
            first = 0

    def inputs(self, batch: Mapping, purpose: int, number: int) -> tuple:
        """The inputs of the loss for the samples of this process.

        Random values depend on the seed, the batch's number and the sample's position among those of all processes,
        not on the process.
        """
        positions = batch["positions"]
        seed = self.options.seed
        generators = [np.random.default_rng([seed, purpose, number, int(position)]) for position in positions]
        uniform = np.array([generator.random() for generator in generators])
        timesteps = self.objective.timesteps(uniform, positions, self.world.size * len(positions))
        latents = self.sample(self.posterior(batch), generators)
        eps = sample_noise(generators, latents.shape[1:])
        if self.options.objective.noise_offset:
            eps += np.float32(self.options.objective.noise_offset) * sample_noise(
                generators, (latents.shape[1], 1, 1, 1)
            )
        mask = batch["attention_mask"]
        if mask is not None and "images" in batch:
            mask = np.concatenate(
                [mask, np.ones((len(mask), batch["images"].shape[2], *mask.shape[2:]), np.float32)], 1
            )
        return (
            latents,
            Tensor(eps),
            *map(Tensor, self.objective.coefficients(timesteps)),
            *self.text(batch),
            None if mask is None else Tensor(mask),
            self.condition(batch, generators),
        )

    def condition(self, batch: Mapping, generators: Sequence[np.random.Generator]) -> Optional[Tensor]:
        """Conditioning that is concatenated with the noisy latents."""
        return None

    def posterior(self, batch: Mapping) -> DiagonalGaussian:
        """The posterior of the batch's videos, from their pixels or from the latent cache."""
        if "images" in batch:
            return self.joint_posterior(batch["pixels"], batch["images"])
        if self.cache is None:
            return self.vae.encode(Tensor(batch["pixels"]))
        return cached_posterior(batch["moments"][:, : 2 * self.vae.config.latent_dim])

    def joint_posterior(self, videos: np.ndarray, images: np.ndarray) -> DiagonalGaussian:
        """The posterior of videos (B, 3, T, H, W), and after their frames of images (B, 3, N, H, W)."""
        b, c, n, h, w = images.shape
        single = np.ascontiguousarray(images.swapaxes(1, 2).reshape(b * n, c, 1, h, w))
        first, others = self.vae.encode(Tensor(videos)), self.vae.encode(Tensor(single))
        mean, logvar = join_images(first.mean, others.mean), join_images(first.logvar, others.logvar)
        return DiagonalGaussian(ops.cat((mean, logvar), 1))

    def sample(self, posterior: DiagonalGaussian, generators: Sequence[np.random.Generator]) -> Tensor:
        """Normalized samples of the posterior of each video, of about unit variance."""
        noise = Tensor(sample_noise(generators, posterior.mean.shape[1:]))
        return self.vae.normalize(posterior.sample(noise))

    def text(self, batch: Mapping) -> tuple[Tensor, Tensor]:
        """States (B, 1 + N, L, D) and mask (B, 1 + N, L) of the captions of a video and of N images beside it.

        L is truncated to the longest caption, except in a group.
        """
        mask = batch["cond_mask"]
        length = mask.shape[-1]
        if self.group.size == 1:
            length = min(length, -(-int(mask.sum(-1).max()) // LENGTH_STEP) * LENGTH_STEP)
        mask = Tensor(np.ascontiguousarray(mask[..., :length]))
        if self.text_encoder is None:
            return Tensor(np.ascontiguousarray(batch["cond"][:, :, :length])), mask
        ids = Tensor(np.ascontiguousarray(batch["input_ids"][..., :length]))
        states = self.text_encoder(ids.reshape(-1, length), mask.reshape(-1, length))
        return states.reshape(mask.shape + (-1,)), mask

    def gather_batch(self, inputs: tuple) -> tuple:
        """The samples of all members of the group, in order of rank."""
        if self.group.size == 1:
            return inputs
        if inputs[ATTENTION_MASK] is not None:
            raise UserError("--sp_size does not support padded batches: use --group_data")
        return tuple(x if x is None else self.gather(x) for x in inputs)

    def validate(self) -> tuple[Mapping[str, float], Mapping[str, np.ndarray]]:
        """The mean loss over the validation data, with the same noise every time."""
        data, options = self.val_loader, self.options
        if data is None:
            raise UserError("validation needs held-out data: --val_data")
        sampler = BatchSampler(
            data.dataset.buckets, options.val_batch_size, self.world.rank, self.world.size, options.seed
        )
        loader = Loader(data.dataset, sampler, data.collate, data.num_workers)
        losses = []
        self.dropout_seed.value = None
        with self.optimizer.weights_outside_blocks():
            for number, batch in enumerate(islice(loader, len(sampler))):
                inputs = self.gather_batch(self.inputs(batch, VALIDATION, number))
                losses.append(self.loss(*inputs))
        (loss,) = self.world.all_reduce_mean(ops.stack(losses).mean().reshape(1))
        metrics: dict[str, float] = {"loss": float(loss)}
        images: Mapping[str, np.ndarray] = {}
        if self.samples is not None:
            measured, images = self.samples.measure(self.sampling_pipeline(), self.condition)
            metrics.update(measured)
            self.loss.set_train()
        return metrics, images

    def sampling_pipeline(self) -> OpenSoraPipeline:
        """The models as they are now, in inference mode, to sample from captions without a template."""
        options, data, model = self.options, self.val_loader, self.trained[""].model
        generation = generation_of({"_class_name": type(model).__name__, **model.config.to_dict()})
        assert options.val_sampling is not None and data is not None and generation is not None
        return OpenSoraPipeline(
            LazyModel(lambda: self.text_encoder),
            data.dataset.tokenizer,
            LazyModel(lambda: model),
            LazyModel(lambda: self.vae),
            sampling_scheduler(options.val_sampling, options.objective, generation),
            prompt_template="{}",
            negative_prompt="",
            generation=generation,
        )


def sample_noise(generators: Sequence[np.random.Generator], shape: tuple) -> np.ndarray:
    """Standard normal noise (B, *shape) float32, each sample from its own generator."""
    return np.stack([generator.standard_normal(shape, dtype=np.float32) for generator in generators])


def check_one_length(dataset: T2VDataset, batch_size: int) -> None:
    """Raises UserError for samples that a model with positions for one number of frames does not take."""
    options, index = dataset.options, dataset.index
    shapes = [shape for shape, count in zip(index.shapes, index.shape_counts) if count >= dataset.min_samples]
    for shape in shapes:
        if shape.frames not in (1, options.num_frames):
            raise UserError(
                f"{options.file}: has samples of {shape}, but the model has positions for {options.num_frames} frames "
                "alone: leave shorter videos out with --drop_short_ratio 1"
            )
    if len(shapes) > 1 and batch_size > 1 and not options.group_data:
        raise UserError(
            f"{options.file}: has samples of {len(shapes)} sizes, and the model takes no padded batches: use "
            "--group_data"
        )


def check_same_samples(world: World, dataset: T2VDataset) -> None:
    """Raises UserError if this process has selected other samples than the first one, such as after files changed."""
    own = dataset.index.fingerprint
    first = int(world.all_reduce(Tensor([float(own if world.rank == 0 else 0)])).asnumpy()[0])
    if own != first:
        raise UserError(
            f"{dataset.options.file}: this process and the first one have selected different samples: check whether "
            f"annotations or files have changed since the start, and whether all machines see the same files"
        )
