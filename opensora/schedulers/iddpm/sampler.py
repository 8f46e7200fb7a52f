"""The samplers of Open-Sora v1.1, with classifier-free guidance and conditioning frames.

    IDDPM       ancestral sampling over respaced timesteps: x_{t-1} = μ(x_t, x_0) + exp(log Σ / 2) z, with log Σ
                interpolated between log β and the posterior's log variance by the model (Nichol & Dhariwal 2021,
                "Improved Denoising Diffusion Probabilistic Models", eq. 15)
    IDDPMSpeed  the same process, trained more often on the timesteps with most to learn (Wang et al. 2024, "A Closer
                Look at Time Steps is Worthy of Triple Speed-Up for Diffusion Model Training", SpeeD)
    DPMSolver   DPM-Solver++(2M) over uniform times (Lu et al. 2022, "DPM-Solver++: Fast Solver for Guided Sampling of
                Diffusion Probabilistic Models", algorithm 2)

Guidance (Ho & Salimans 2022, eq. 6): null + scale (prompt - null), on the noise prediction only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Callable, Optional

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops
from tqdm import tqdm

from opensora.errors import UserError
from opensora.schedulers.exponential import DPMSolverMultistep
from opensora.schedulers.iddpm.loss import DiffusionLoss
from opensora.schedulers.iddpm.tables import make_tables
from opensora.schedulers.parameterization import Levels
from opensora.schedulers.schedule import TRAIN_TIMESTEPS

Noise = Optional[Callable[[int], Any]]  # k -> the k-th draw of a trajectory, numpy or Tensor; None: sampled
Predict = Callable[[Tensor, float, Optional[Tensor]], Tensor]  # x, timestep, x_mask -> the model's output

# Thresholds on the slope of sqrt(1 - ᾱ): timesteps above STEEP are sampled five times as often as the others; from the
# first timestep below FLAT on, x_t hardly changes.
STEEP, FLAT = 1e-4, 5e-5


def combine(prompt: Tensor, null: Tensor, scale: float, channels: int) -> Tensor:
    """The guided output (Ho & Salimans 2022, eq. 6): null + scale (prompt - null) in the first `channels` channels.

    The other channels are those of the prompt's output.
    """
    c = channels
    return ops.cat((null[:, :c] + scale * (prompt[:, :c] - null[:, :c]), prompt[:, c:]), 1)


def guided(model, model_args: Mapping[str, Any], scale: float, channels: Optional[int] = None) -> Predict:
    """The model's output for `model_args` with classifier-free guidance on `channels` channels (None: those of x).

    `model_args["y"]` (n, 1, L, D) is the text; `model.null_text(n)` is concatenated to it.
    """
    y = model_args["y"]
    arguments = {**model_args, "y": ops.cat((y, model.null_text(y.shape[0]).astype(y.dtype)), 0)}

    def predict(x: Tensor, timestep: float, x_mask: Optional[Tensor]) -> Tensor:
        if x_mask is not None:
            arguments["x_mask"] = ops.cat((x_mask, x_mask), 0)
        timesteps = Tensor(np.full(2 * x.shape[0], timestep, np.float32))
        output = model(ops.cat((x, x), 0), timesteps, **arguments).astype(ms.float32)
        prompt, null = ops.chunk(output, 2, 0)
        return combine(prompt, null, scale, channels or x.shape[1])

    return predict


@dataclass
class IDDPM:
    """Fields are the keys of Open-Sora's config files; `num_sampling_steps` n equals `timestep_respacing` "n".

    Raises:
        UserError: both of these are set, or a value is invalid.
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

    def __post_init__(self) -> None:
        if self.num_sampling_steps is not None and self.timestep_respacing is not None:
            raise UserError(
                f"num_sampling_steps {self.num_sampling_steps} and timestep_respacing "
                f"{self.timestep_respacing!r} set the same value: leave one out"
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
        """Weights of the squared error in training, by timestep."""
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
        """From noise to latents; the package's docstring describes the arguments."""
        predict = guided(model, model_args, self.cfg_scale, self.cfg_channel)
        return self.run(predict, latents, mask, noise, progress)

    def run(
        self, predict: Predict, latents: Any, mask: Any = None, noise: Noise = None, progress: bool = False
    ) -> Tensor:
        """As `sample`, with a function that predicts with guidance."""
        states = self.trajectory(predict, _as_latents(latents), mask, noise)
        progress_bar = tqdm(states, "denoising", self.num_steps, leave=False, unit="step", disable=not progress)
        (last,) = deque(progress_bar, maxlen=1)
        return last

    @property
    def num_steps(self) -> int:
        return len(self.tables.betas)

    @property
    def call_timesteps(self) -> Sequence[float]:
        """The timesteps of the model's calls in order."""
        return [float(t) for t in self.tables.timestep_map[::-1]]

    def levels(self) -> Levels:
        """α and σ of the model's input at each call."""
        tables = self.tables
        points = zip(tables.sqrt_alphas_cumprod[::-1], tables.sqrt_one_minus_alphas_cumprod[::-1])
        return Levels.of("sample" if self.predict_xstart else "epsilon", points)

    def trajectory(self, predict: Predict, x: Tensor, mask: Any = None, noise: Noise = None) -> Iterator[Tensor]:
        """Yields the state after each step, starting from x (n, C, T, H, W).

        A frame of edit rate r is kept until the fraction r of the steps remains; at that step it is noised to the
        step's level, and the later steps denoise it. Up to and including that step the model gets the frame with
        timestep 0: an oddity of the published sampler. A step draws noise once, with a mask twice.
        """
        sample_noise = _noise_sampler(noise, x.shape)
        first_step = None if mask is None else self.first_steps(mask, x)
        for i in reversed(range(self.num_steps)):
            before, x_mask = x, None
            if first_step is not None:
                fresh, begins = sample_noise(), first_step == i
                if begins.any():
                    alpha, sigma = self.tables.sqrt_alphas_cumprod[i], self.tables.sqrt_one_minus_alphas_cumprod[i]
                    x = ops.where(_broadcast_frames(begins), float(alpha) * x + float(sigma) * fresh, x)
                x_mask = Tensor(first_step > i)
            x = self.step(predict(x, float(self.tables.timestep_map[i]), x_mask), i, x, sample_noise())
            if first_step is not None:
                x = ops.where(_broadcast_frames(first_step < i), before, x)
            yield x

    def first_steps(self, mask: Any, x: Tensor) -> np.ndarray:
        """The step at which each frame is noised, (n, T), from edit rates; the number of steps (never) for rate 1."""
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
        """Training timesteps (B,), uniformly distributed, from numbers (B,) in [0, 1)."""
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
        """The losses of each sample, {"loss": (B,)} and those of its terms in use: "mse", "vb".

        For PyNative mode only; `TrainingLoss` also supports graph mode.

        Args:
            x: latents (B, C, T, H, W). noise: like x; sampled if None. t: (B,) as from `timesteps`; sampled if None.
            mask: (B, T), 1 for trained frames, 0 for conditioning frames; the model gets it as `x_mask`.

        Raises:
            UserError: a mask with `use_kl`.
        """
        if t is None:
            t = self.timesteps(np.random.random(x.shape[0]))
        t = (t if isinstance(t, Tensor) else Tensor(np.asarray(t))).astype(ms.int32)
        noise = _standard_normal(x.shape) if noise is None else noise
        masked = {} if mask is None else {"x_mask": mask > 0}
        noised = self.losses.noised(x, noise, t, mask)
        output = model(noised, Tensor(self.tables.timestep_map.astype(np.float32))[t], **{**model_args, **masked})
        terms = zip(("loss", "mse", "vb"), self.losses(output, x, noised, noise, t, mask))
        return {name: term for name, term in terms if term is not None}


@dataclass
class IDDPMSpeed(IDDPM):
    """Training only."""

    def __post_init__(self) -> None:
        super().__post_init__()
        # Slopes of the float32 table, as published: tanh amplifies its rounding.
        slopes = np.gradient(self.tables.sqrt_one_minus_alphas_cumprod).astype(np.float64)
        likelihood = np.tanh(1e6 * (slopes - STEEP)) + 1.5
        self.probabilities = likelihood / likelihood.sum()
        self.meaningful_steps = 1 + int(np.argmax(slopes < FLAT))

    def error_weights(self) -> np.ndarray:
        return 1 - self.tables.alphas_cumprod

    def timesteps(self, uniform: np.ndarray) -> np.ndarray:
        """Training timesteps (B,): half of them sampled, and for each sampled t its mirror |M - t|."""
        batch = len(uniform)
        cumulative = np.cumsum(self.probabilities)
        sampled = np.searchsorted(cumulative / cumulative[-1], uniform[: batch // 2 + 1], side="right")
        return np.concatenate([sampled, np.abs(self.meaningful_steps - sampled)])[:batch].astype(np.int32)

    def sample(self, *args, **kwargs):
        raise UserError("iddpm-speed is for training only: sample with iddpm or dpm-solver")


class UniformTimeSolver(DPMSolverMultistep):
    """DPM-Solver++(2M) from time 1 to 1/1000; timesteps are fractions, between which log α is linear.

    Only trajectories of fewer than 10 steps end with a first-order step.
    """

    timestep_range = (1, TRAIN_TIMESTEPS - 1)  # the trajectory ends at 0

    def _spaced_timesteps(self, count: int) -> np.ndarray:
        return np.linspace(TRAIN_TIMESTEPS - 1, 0, count + 1)[:-1]

    def _use_timesteps(self, steps: np.ndarray) -> np.ndarray:
        times = (np.append(steps, 0) + 1) / TRAIN_TIMESTEPS
        training_times = np.arange(1, TRAIN_TIMESTEPS + 1) / TRAIN_TIMESTEPS
        log_alpha = np.interp(times, training_times, 0.5 * np.log(self.alphas_cumprod))
        self.sigmas = np.sqrt(np.expm1(-2 * log_alpha))  # noise-to-signal ratio
        return steps

    def _is_last(self, index: int) -> bool:
        return len(self.timesteps) < 10 and super()._is_last(index)


@dataclass
class DPMSolver:
    """Sampling only, for models that predict noise; a predicted variance is ignored."""

    num_sampling_steps: int = 20
    cfg_scale: float = 4.0

    def __post_init__(self) -> None:
        self.solver = UniformTimeSolver()
        self.solver.set_timesteps(self.num_sampling_steps)

    def sample(
        self,
        model,
        latents: Any,
        model_args: Mapping[str, Any],
        mask: Any = None,
        noise: Noise = None,
        progress: bool = False,
    ) -> Tensor:
        """From noise to latents; the package's docstring describes the arguments. Samples no noise.

        Raises:
            UserError: a mask with conditioning frames.
        """
        predict = guided(model, model_args, self.cfg_scale)
        return self.run(predict, latents, mask, noise, progress)

    def run(
        self, predict: Predict, latents: Any, mask: Any = None, noise: Noise = None, progress: bool = False
    ) -> Tensor:
        """As `sample`, with a function that predicts with guidance."""
        if mask is not None and np.min(mask.asnumpy() if isinstance(mask, Tensor) else mask) < 1:
            raise UserError("dpm-solver has no conditioning frames: for references use the scheduler iddpm")
        x = _as_latents(latents)
        for t in tqdm(self.solver.timesteps, desc="denoising", unit="step", leave=False, disable=not progress):
            x = self.solver.step(predict(x, float(t), None)[:, : x.shape[1]], t, x)
        return x

    @property
    def call_timesteps(self) -> Sequence[float]:
        """The timesteps of the model's calls in order."""
        return [float(t) for t in self.solver.timesteps]

    def levels(self) -> Levels:
        """α and σ of the model's input at each call."""
        return self.solver.levels()

    @property
    def cfg_channel(self) -> Optional[int]:
        """Guidance is on all channels of the noise prediction."""
        return None

    def training_losses(self, *args, **kwargs):
        raise UserError("dpm-solver is for sampling only: train with iddpm or iddpm-speed")


def _noise_sampler(noise: Noise, shape: tuple[int, ...]) -> Callable[[], Tensor]:
    """A function that returns new N(0, 1) noise of `shape`, float32, at each call."""
    if noise is None:
        return lambda: _standard_normal(shape)
    draws = count()

    def sample_noise() -> Tensor:
        values = noise(next(draws))
        values = (values if isinstance(values, Tensor) else Tensor(np.asarray(values))).astype(ms.float32)
        if tuple(values.shape) != tuple(shape):
            raise UserError(f"the noise has shape {tuple(values.shape)}, the sample {tuple(shape)}")
        return values

    return sample_noise


def _standard_normal(shape: tuple[int, ...]) -> Tensor:
    """N(0, 1) noise of numpy's seeded generator; Ascend's own generators ignore seeds."""
    return Tensor(np.random.standard_normal(shape).astype(np.float32))


def _as_latents(latents: Any) -> Tensor:
    """(n, C, T, H, W), numpy or Tensor, as a float32 Tensor."""
    return (latents if isinstance(latents, Tensor) else Tensor(np.asarray(latents))).astype(ms.float32)


def _broadcast_frames(selected: np.ndarray) -> Tensor:
    """(n, T) -> (n, 1, T, 1, 1)."""
    return Tensor(selected[:, None, :, None, None])
