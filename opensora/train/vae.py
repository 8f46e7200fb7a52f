"""Training of WFVAE on videos, with a discriminator against it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Optional

import numpy as np
from mindspore import Tensor, ops

from opensora.datasets.loader import Loader
from opensora.datasets.sampler import BatchSampler
from opensora.datasets.transforms import to_uint8
from opensora.datasets.vae import VAEDataset
from opensora.device import Device
from opensora.metrics.peak_signal import psnr
from opensora.metrics.perceptual import SpatialLPIPS
from opensora.metrics.structural import ssim
from opensora.models import WFVAEModel
from opensora.models.discriminator import NLayerDiscriminator3D
from opensora.models.lpips import LPIPS
from opensora.parallel.process_group import World
from opensora.train.checkpoint import ModelAndOptimizer
from opensora.train.optimizer import Optimizer
from opensora.train.trainer import Report
from opensora.train.vae_loss import DiscriminatorLoss, GeneratorLoss
from opensora.train.vae_options import VAETrainOptions

TRAINING = 0  # what noise is for, part of its seed; validation takes the posterior's mean


class VAETraining:
    """See `opensora.train.trainer.Training`. A step is the autoencoder's, or in turn with it the discriminator's.

    Args:
        checkpoint: its weights are taken instead of the pretrained ones.
    """

    def __init__(self, options: VAETrainOptions, device: Device, world: World, checkpoint: Optional[Path]):
        self.options, self.device, self.world = options, device, world
        lpips = LPIPS.load(options.lpips_path) if options.loss.perceptual_weight > 0 else None
        self.eval_lpips = SpatialLPIPS(options.eval_lpips) if options.eval_lpips else None
        dataset = VAEDataset(options.data)
        sampler = BatchSampler(
            [np.arange(len(dataset))], options.train_batch_size, world.rank, world.size, options.seed
        )
        self.loader = Loader(dataset, sampler, num_workers=options.dataloader_num_workers)
        self.val_dataset = VAEDataset(options.val_data, random_start=False) if options.val_data else None

        self.vae = self.build_vae(checkpoint).set_train()
        if options.freeze_encoder:
            for parameter in self.vae.encoder.get_parameters():
                parameter.requires_grad = False
        self.optimizer = Optimizer(
            self.vae, options.adamw, options.ema, options.max_grad_norm, options.zero_stage, world
        )
        self.trained = {"": ModelAndOptimizer(self.vae, self.optimizer)}
        discriminator = None
        if options.use_discriminator:
            discriminator = self.build_discriminator(checkpoint).set_train()
            self.disc_optimizer = Optimizer(
                discriminator, options.disc_adamw, None, options.disc_max_grad_norm, options.zero_stage, world
            )
            self.disc_loss = DiscriminatorLoss(discriminator, options.loss)
            self.trained["discriminator_"] = ModelAndOptimizer(discriminator, self.disc_optimizer)
        for _, optimizer in self.trained.values():
            optimizer.loss_scale.start(options.init_loss_scale)
        self.loss = GeneratorLoss(self.vae, options.loss, lpips, discriminator)
        # The newest of each, for their turns differ; None before the first.
        self.logged: dict[str, Optional[float]] = dict.fromkeys(self.names_logged())
        self.steps = self.batch = 0
        self.batches = iter(self.loader)

    @property
    def samples_per_step(self) -> int:
        return self.options.train_batch_size * self.world.size * self.options.gradient_accumulation_steps

    @property
    def wait_seconds(self) -> float:
        return self.loader.wait_seconds

    def build_vae(self, checkpoint: Optional[Path]) -> WFVAEModel:
        options = self.options
        source = checkpoint / "model" if checkpoint else options.pretrained_model_name_or_path
        config = WFVAEModel.published_config(source if checkpoint else options.model_config or source)
        if source is None:
            return WFVAEModel(**config).cast(self.device.dtype)
        return WFVAEModel.from_pretrained(source, dtype=self.device.dtype, config=config)

    def build_discriminator(self, checkpoint: Optional[Path]) -> NLayerDiscriminator3D:
        if checkpoint is None:
            return NLayerDiscriminator3D().cast(self.device.dtype)
        return NLayerDiscriminator3D.from_pretrained(checkpoint / "discriminator_model", dtype=self.device.dtype)

    def names_logged(self) -> list[str]:
        names = ["loss"] + ["discriminator_loss"] * self.options.use_discriminator
        if self.options.print_losses:
            names += [*GeneratorLoss.parts, *(DiscriminatorLoss.parts if self.options.use_discriminator else ())]
        return names

    def step(self, learning_rate: float) -> Report:
        options, step = self.options, self.steps
        self.steps += 1
        discriminates = options.use_discriminator and options.loss.trains_discriminator(step)
        forward = self.disc_loss if discriminates else self.loss
        optimizer = self.disc_optimizer if discriminates else self.optimizer
        outputs = []
        for _ in range(options.gradient_accumulation_steps):
            video, noise = self.inputs(next(self.batches))
            if discriminates:
                inputs = video, ops.stop_gradient(self.reconstruct(video, noise))
            else:
                inputs = video, noise, options.use_discriminator and step >= options.loss.disc_start
            with self.optimizer.weights_outside_blocks():
                loss, parts = optimizer.backward(forward, *inputs)
            outputs.append(ops.stack([loss, *parts]))
        values = self.world.mean(ops.stack(outputs).mean(0))
        names = ["discriminator_loss" if discriminates else "loss", *forward.parts]
        self.logged.update({name: float(value) for name, value in zip(names, values) if name in self.logged})
        norm, applied = optimizer.step(learning_rate)
        return Report(dict(self.logged), norm, applied)

    def inputs(self, batch: Mapping) -> tuple[Tensor, Tensor]:
        """The videos and the noise of their latents, which follows from the seed, the batch and the video's place."""
        video = Tensor(batch["video"]).astype(self.device.dtype)
        config = self.vae.config
        _, _, t, h, w = video.shape
        shape = (
            config.latent_dim,
            (t - 1) // config.temporal_stride + 1,
            h // config.spatial_stride,
            w // config.spatial_stride,
        )
        noise = np.stack(
            [
                np.random.default_rng([self.options.seed, TRAINING, self.batch, int(place)]).standard_normal(
                    shape, dtype=np.float32
                )
                for place in batch["positions"]
            ]
        )
        self.batch += 1
        return video, Tensor(noise).astype(self.device.dtype)

    def reconstruct(self, video: Tensor, noise: Tensor) -> Tensor:
        return self.vae.decode(self.vae.encode(video).sample(noise))

    def position(self) -> dict:
        return {
            "sampler": self.loader.sampler.state_dict(),
            "steps": self.steps,
            "batch": self.batch,
            "logged": self.logged,
        }

    def restore(self, position: dict) -> None:
        self.loader.sampler.load_state_dict(position["sampler"])
        self.steps, self.batch = position["steps"], position["batch"]
        self.logged.update({name: value for name, value in position["logged"].items() if name in self.logged})

    def validate(self) -> tuple[Mapping[str, float], Mapping[str, np.ndarray]]:
        """PSNR, SSIM and, with `eval_lpips`, LPIPS of reconstructions from the posterior's mean: of the weights, and
        of their moving averages."""
        self.vae.set_train(False)
        with self.optimizer.weights_outside_blocks():
            values, pictures = self.measure("")
            if self.optimizer.ema:
                with self.averaged_weights():
                    averaged, averaged_pictures = self.measure("ema_")
                values, pictures = {**values, **averaged}, {**pictures, **averaged_pictures}
        self.vae.set_train()
        return values, pictures

    def measure(self, prefix: str) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        count = min(len(self.val_dataset), self.options.eval_subset_size)
        metrics = {"psnr": psnr, "ssim": ssim, **({"lpips": self.eval_lpips} if self.eval_lpips else {})}
        sums, pictures = np.zeros(len(metrics) + 1, np.float32), {}
        for index in range(self.world.rank, count, self.world.size):
            video = self.val_dataset.item(index, np.random.default_rng(index))["video"]  # 3 T H W
            latents = self.vae.encode(Tensor(video[None]).astype(self.device.dtype)).mode()
            reconstruction = self.vae.decode(latents).float().asnumpy()[0].clip(-1, 1)
            pair = [clip.swapaxes(0, 1) / 2 + 0.5 for clip in (video, reconstruction)]
            sums += [*(metric(*pair).mean() for metric in metrics.values()), 1]
            if index < self.options.eval_num_video_log:
                pictures[f"{prefix}reconstruction_{index}"] = above_and_below(video, reconstruction)
        *totals, measured = self.world.sum(Tensor(sums)).asnumpy()
        return {prefix + name: float(total / measured) for name, total in zip(metrics, totals)}, pictures

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """The VAE has the moving averages of its weights meanwhile."""
        trained = self.vae.torch_state()
        self.vae.load_torch_state(
            {name: tensor.numpy() for name, tensor in self.optimizer.ema_weights().items()}, strict=False
        )
        try:
            yield
        finally:
            self.vae.load_torch_state(trained)


def above_and_below(video: np.ndarray, reconstruction: np.ndarray) -> np.ndarray:
    """Some frames of two videos (3, T, H, W) in [-1, 1], one above the other: a picture uint8 (2 H, n W, 3)."""
    frames = np.linspace(0, video.shape[1] - 1, min(4, video.shape[1]), dtype=int)
    rows = [np.concatenate(list(clip[:, frames].transpose(1, 2, 3, 0)), 1) for clip in (video, reconstruction)]
    return to_uint8(np.concatenate(rows))
