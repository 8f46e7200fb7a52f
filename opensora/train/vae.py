"""Training of a video autoencoder, with an optional discriminator."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Callable, Optional

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from opensora.datasets.loader import Loader
from opensora.datasets.sampler import BatchSampler
from opensora.datasets.transforms import to_uint8
from opensora.datasets.vae import VAEDataset
from opensora.device import Device
from opensora.errors import UserError
from opensora.metrics import lpips, psnr, ssim
from opensora.models.discriminator import NLayerDiscriminator, NLayerDiscriminator3D, PatchDiscriminator
from opensora.models.lpips import LPIPS
from opensora.models.vaes import VAE, configured_class
from opensora.parallel.process_group import World
from opensora.train.checkpoint import ModelAndOptimizer
from opensora.train.optimizer import Optimizer
from opensora.train.trainer import StepResult
from opensora.train.vae_loss import DiscriminatorLoss, GeneratorLoss
from opensora.train.vae_options import DISCRIMINATORS, VAETrainOptions

DISCRIMINATOR_CLASSES: dict[str, type[PatchDiscriminator]] = dict(
    zip(DISCRIMINATORS, (NLayerDiscriminator, NLayerDiscriminator3D))
)
TRAINING = 0  # the purpose of noise, a component of its seed; validation uses the posterior's mean


class VAETraining:
    """See `opensora.train.trainer.Training`. Steps train the autoencoder and, alternating with it, the discriminator.

    Args:
        checkpoint: replaces the pretrained weights.
    """

    def __init__(self, options: VAETrainOptions, device: Device, world: World, checkpoint: Optional[Path]):
        self.options, self.device, self.world = options, device, world
        lpips = LPIPS.load(options.lpips_path) if options.loss.perceptual_weight > 0 else None
        self.eval_lpips = LPIPS.load(options.eval_lpips, net="alex") if options.eval_lpips else None
        dataset = VAEDataset(options.data)
        sampler = BatchSampler(
            [np.arange(len(dataset))], options.train_batch_size, world.rank, world.size, options.seed
        )
        self.loader = Loader(dataset, sampler, num_workers=options.dataloader_num_workers)
        self.val_dataset = VAEDataset(options.val_data, random_start=False) if options.val_data else None

        self.vae = self.build_vae(checkpoint).set_train()
        if options.freeze_encoder:
            for name, parameter in self.vae.parameters_and_names():
                if name.startswith(("encoder.", "quant_conv.")):
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
        for entry in self.trained.values():
            entry.optimizer.loss_scale.start(options.init_loss_scale)
        self.loss = GeneratorLoss(self.vae, options.loss, lpips, discriminator)
        # The latest value of each: autoencoder and discriminator alternate. None before the first.
        self.logged: dict[str, Optional[float]] = dict.fromkeys(self.names_logged())
        self.steps = self.batch = 0
        self.batches = iter(self.loader)

    @property
    def samples_per_step(self) -> int:
        return self.options.train_batch_size * self.world.size * self.options.gradient_accumulation_steps

    def build_vae(self, checkpoint: Optional[Path]) -> VAE:
        """The autoencoder that the flags select, with the weights of the checkpoint, pretrained or random ones."""
        options = self.options
        source = checkpoint / "model" if checkpoint else options.pretrained_model_name_or_path
        described = source if checkpoint else options.model_config or source
        assert described is not None, "VAETrainOptions requires one of them"
        model = configured_class(described)
        if options.model_name is not None and not model.__name__.startswith(options.model_name):
            raise UserError(f"--model_name {options.model_name}: {described} describes a {model.__name__}")
        config = model.published_config(described)
        if source is None:
            return model(**config).cast(self.device.vae_dtype)
        return model.from_pretrained(source, dtype=self.device.vae_dtype, config=config)

    def build_discriminator(self, checkpoint: Optional[Path]) -> PatchDiscriminator:
        # The operator Conv3D is documented for float16 and float32 only.
        dtype = ms.float16 if self.device.vae_dtype == ms.float16 else ms.float32
        discriminator = DISCRIMINATOR_CLASSES[self.options.disc_cls]
        if checkpoint is None:
            return discriminator().cast(dtype)
        return discriminator.from_pretrained(checkpoint / "discriminator_model", dtype=dtype)

    def names_logged(self) -> list[str]:
        names = ["loss"] + ["discriminator_loss"] * self.options.use_discriminator
        if self.options.print_losses:
            names += [*GeneratorLoss.metrics, *(DiscriminatorLoss.metrics if self.options.use_discriminator else ())]
        return names

    def step(self, learning_rate: float) -> StepResult:
        options, step = self.options, self.steps
        self.steps += 1
        discriminates = options.use_discriminator and options.loss.trains_discriminator(step)
        forward = self.disc_loss if discriminates else self.loss
        optimizer = self.disc_optimizer if discriminates else self.optimizer
        outputs = []
        for _ in range(options.gradient_accumulation_steps):
            video, noise = self.inputs(next(self.batches))
            inputs: tuple = video, noise, options.use_discriminator and step >= options.loss.disc_start
            if discriminates:
                inputs = video, ops.stop_gradient(self.reconstruct(video, noise))
            with self.optimizer.weights_outside_blocks():
                loss, metrics = optimizer.backward(forward, *inputs)
            outputs.append(ops.stack([loss, *metrics]))
        values = self.world.all_reduce_mean(ops.stack(outputs).mean(0))
        names = ["discriminator_loss" if discriminates else "loss", *forward.metrics]
        self.logged.update({name: float(value) for name, value in zip(names, values) if name in self.logged})
        norm, applied = optimizer.step(learning_rate)
        return StepResult(dict(self.logged), norm, applied)

    def inputs(self, batch: Mapping) -> tuple[Tensor, Tensor]:
        """Videos and the noise of their latents, which depends on the seed, the batch and the video's index in it."""
        video = Tensor(batch["video"])
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
                np.random.default_rng([self.options.seed, TRAINING, self.batch, int(position)]).standard_normal(
                    shape, dtype=np.float32
                )
                for position in batch["positions"]
            ]
        )
        self.batch += 1
        return video, Tensor(noise)

    def reconstruct(self, video: Tensor, noise: Tensor) -> Tensor:
        return self.vae.decode(self.vae.encode(video).sample(noise))

    def state_dict(self) -> dict:
        return {
            "sampler": self.loader.sampler.state_dict(),
            "steps": self.steps,
            "batch": self.batch,
            "logged": self.logged,
        }

    def load_state_dict(self, state: dict) -> None:
        self.loader.sampler.load_state_dict(state["sampler"])
        self.steps, self.batch = state["steps"], state["batch"]
        self.logged.update({name: value for name, value in state["logged"].items() if name in self.logged})

    def validate(self) -> tuple[Mapping[str, float], Mapping[str, np.ndarray]]:
        """PSNR, SSIM and, with `eval_lpips`, LPIPS of reconstructions from the posterior's mean, with the weights and
        with their moving averages."""
        if self.val_dataset is None:
            raise UserError("validation needs held-out videos: --eval_video_path")
        self.vae.set_train(False)
        with self.optimizer.weights_outside_blocks():
            metrics, images = self.measure(self.val_dataset, "")
            if self.optimizer.ema:
                with self.averaged_weights():
                    ema_metrics, ema_images = self.measure(self.val_dataset, "ema_")
                metrics, images = {**metrics, **ema_metrics}, {**images, **ema_images}
        self.vae.set_train()
        return metrics, images

    def measure(self, dataset: VAEDataset, prefix: str) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Metrics over all processes and images of this one, with `prefix` before their names."""
        count = min(len(dataset), self.options.eval_subset_size)
        metrics: dict[str, Callable] = {"psnr": psnr, "ssim": ssim}
        if self.eval_lpips is not None:
            metrics["lpips"] = partial(lpips, network=self.eval_lpips)
        sums, images = np.zeros(len(metrics) + 1, np.float32), {}
        for index in range(self.world.rank, count, self.world.size):
            video = dataset.item(index, np.random.default_rng(index))["video"]  # 3 T H W
            latents = self.vae.encode(Tensor(video[None])).mode()
            reconstruction = self.vae.decode(latents).float().asnumpy()[0].clip(-1, 1)
            pair = [clip.swapaxes(0, 1) / 2 + 0.5 for clip in (video, reconstruction)]
            sums += [*(metric(*pair).mean() for metric in metrics.values()), 1]
            if index < self.options.eval_num_video_log:
                images[f"{prefix}reconstruction_{index}"] = stack_vertically(video, reconstruction)
        *totals, measured = self.world.all_reduce(Tensor(sums)).asnumpy()
        return {prefix + name: float(total / measured) for name, total in zip(metrics, totals)}, images

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Within the block, the VAE has the moving averages of its weights."""
        trained = self.vae.torch_state()
        self.vae.load_torch_state(
            {name: tensor.numpy() for name, tensor in self.optimizer.ema_weights().items()}, strict=False
        )
        try:
            yield
        finally:
            self.vae.load_torch_state(trained)


def stack_vertically(video: np.ndarray, reconstruction: np.ndarray) -> np.ndarray:
    """Up to 4 frames of two videos (3, T, H, W) in [-1, 1], one video above the other: uint8 (2 H, n W, 3)."""
    frames = np.linspace(0, video.shape[1] - 1, min(4, video.shape[1]), dtype=int)
    rows = [np.concatenate(list(clip[:, frames].transpose(1, 2, 3, 0)), 1) for clip in (video, reconstruction)]
    return to_uint8(np.concatenate(rows))
