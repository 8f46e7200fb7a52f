"""IDDPM: Nichol & Dhariwal 2021, "Improved Denoising Diffusion Probabilistic Models", with frames that are given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Optional

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops
from tqdm import tqdm

from opensora.errors import UserError
from opensora.schedulers.iddpm.guidance import Noise, Predict, as_latents, drawing, guided
from opensora.schedulers.iddpm.loss import DiffusionLoss
from opensora.schedulers.iddpm.tables import make_tables


@dataclass
class IDDPM:
    """Fields are the keys of Open-Sora's configuration files; `num_sampling_steps` n is `timestep_respacing` "n".

    Raises:
        UserError: both of these, or values that are impossible.
    """

    num_sampling_steps: Optional[int] = None
    timestep_respacing: Optional[str] = None
    noise_schedule: str = "linear"
    use_kl: bool = False
    sigma_small: bool = False
    predict_xstart: bool = False
    learn_sigma: bool = True
    rescale_learned_sigmas: bool = False
    diffusion_steps: int = 1000
    cfg_scale: float = 4.0
    cfg_channel: Optional[int] = None

    def __post_init__(self):
        if self.num_sampling_steps is not None and self.timestep_respacing is not None:
            raise UserError(
                f"num_sampling_steps {self.num_sampling_steps} and timestep_respacing "
                f"{self.timestep_respacing!r} say the same: leave one out"
            )
        if self.cfg_channel is not None and (type(self.cfg_channel) is not int or self.cfg_channel < 1):
            raise UserError(f"cfg_channel {self.cfg_channel!r}: should be a number of channels, 1 or more")
        respacing = self.timestep_respacing or ""
        if self.num_sampling_steps is not None:
            respacing = str(self.num_sampling_steps)
        self.tables = make_tables(self.noise_schedule, self.diffusion_steps, respacing)
        self.losses = DiffusionLoss(
            self.tables,
            self.learn_sigma,
            self.sigma_small,
            self.predict_xstart,
            self.use_kl,
            self.rescale_learned_sigmas,
            self.error_weights(),
        )

    def error_weights(self) -> Optional[np.ndarray]:
        """Factors of the squared error in training, by timestep."""
        return None

    def sample(
        self,
        model,
        latents: Any,
        model_args: Mapping[str, Any],
        mask: Any = None,
        noise: Noise = None,
        progress: bool = False,
    ) -> Tensor:
        """From noise to latents; the package's docstring explains the arguments."""
        predict = guided(model, model_args, self.cfg_scale, self.cfg_channel)
        states = self.trajectory(predict, as_latents(latents), mask, noise)
        for x in tqdm(states, desc="denoising", unit="step", total=self.num_steps, leave=False, disable=not progress):
            pass
        return x

    @property
    def num_steps(self) -> int:
        return len(self.tables.betas)

    def trajectory(self, predict: Predict, x: Tensor, mask: Any = None, noise: Noise = None) -> Iterator[Tensor]:
        """The states after each step from x (n, C, T, H, W) on.

        A frame whose edit rate is r stays what it is until r of the steps are left, then takes on that step's noise and
        is made from it; meanwhile the model sees it with timestep 0. So at the step in which it takes on noise, too: an
        oddity of the published sampler. Without a mask a step draws once, with one twice.
        """
        draw = drawing(noise, x.shape)
        first_step = None if mask is None else self.first_steps(mask, x)
        for i in reversed(range(self.num_steps)):
            before, x_mask = x, None
            if first_step is not None:
                fresh, begins = draw(), first_step == i
                if begins.any():
                    signal, deviation = self.tables.sqrt_alphas_cumprod[i], self.tables.sqrt_one_minus_alphas_cumprod[i]
                    x = ops.where(_frames(begins), float(signal) * x + float(deviation) * fresh, x)
                x_mask = Tensor(first_step > i)
            x = self.step(predict(x, float(self.tables.timestep_map[i]), x_mask), i, x, draw())
            if first_step is not None:
                x = ops.where(_frames(first_step < i), before, x)
            yield x

    def first_steps(self, mask: Any, x: Tensor) -> np.ndarray:
        """At which step each frame takes on noise, (n, T), from edit rates; N, none of them, for a rate of 1."""
        rates = np.asarray(mask.asnumpy() if isinstance(mask, Tensor) else mask, np.float32)
        if rates.shape != (x.shape[0], x.shape[2]) or rates.min() < 0 or rates.max() > 1:
            raise UserError(
                f"the mask should be edit rates from 0 to 1 of {x.shape[0]} x {x.shape[2]} frames, not "
                f"{rates.shape} from {rates.min():g} to {rates.max():g}"
            )
        return np.trunc(rates * np.float32(self.num_steps)).astype(np.int64)

    def step(self, output: Tensor, i: int, x: Tensor, noise: Tensor) -> Tensor:
        """The state after step i (Ho et al. 2020, algorithm 2, with the variance of Nichol & Dhariwal, eq. 15)."""
        tables, variance = self.tables, None
        output = output.astype(ms.float32)
        if self.learn_sigma:
            output, variance = ops.chunk(output, 2, 1)
        x0 = output
        if not self.predict_xstart:
            x0 = float(tables.sqrt_recip_alphas_cumprod[i]) * x - float(tables.sqrt_recipm1_alphas_cumprod[i]) * output
        mean = float(tables.posterior_mean_coef1[i]) * x0 + float(tables.posterior_mean_coef2[i]) * x
        if i == 0:
            return mean
        return mean + ops.exp(0.5 * self.losses.log_variance(variance, Tensor([i]))) * noise

    def timesteps(self, uniform: np.ndarray) -> np.ndarray:
        """Training timesteps (B,) from numbers (B,) in [0, 1): each as likely."""
        return np.floor(np.asarray(uniform) * self.num_steps).astype(np.int32)

    def training_losses(
        self,
        model,
        x: Tensor,
        model_args: Mapping[str, Any],
        mask: Optional[Tensor] = None,
        noise: Optional[Tensor] = None,
        t: Optional[Tensor] = None,
    ) -> dict[str, Tensor]:
        """The losses of each sample, {"loss": (B,)} and the parts it has: "mse", "vb".

        In PyNative mode; `TrainingLoss` is for graph mode too.

        Args:
            x: latents (B, C, T, H, W). noise: like x; drawn if None. t: (B,) as from `timesteps`; drawn if None.
            mask: (B, T), 1 where a frame is trained, 0 where it is given; the model gets it as `x_mask`.

        Raises:
            UserError: a mask with `use_kl`.
        """
        if t is None:
            t = self.timesteps(np.random.random(x.shape[0]))
        t = (t if isinstance(t, Tensor) else Tensor(np.asarray(t))).astype(ms.int32)
        noise = ops.standard_normal(x.shape) if noise is None else noise
        masked = {} if mask is None else {"x_mask": mask > 0}
        noised = self.losses.noised(x, noise, t, mask)
        output = model(noised, Tensor(self.tables.timestep_map.astype(np.float32))[t], **{**model_args, **masked})
        terms = zip(("loss", "mse", "vb"), self.losses(output, x, noised, noise, t, mask))
        return {name: term for name, term in terms if term is not None}


def _frames(which: np.ndarray) -> Tensor:
    """(n, T) -> (n, 1, T, 1, 1)."""
    return Tensor(which[:, None, :, None, None])
