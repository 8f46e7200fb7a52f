"""The interface of every sampler, and the conversions between what models predict.

A sampler integrates from noise to a sample. Its state is a function of x_t = α x_0 + σ ε (`schedule.py`):

    vp.py           x_t, indexed by timestep              DDIM, DDPM, PNDM, CogVideoX
    sigma.py        y = x_t / α = x_0 + σ' ε, σ' = σ / α   Euler, Euler ancestral, Heun, KDPM2 ancestral
    exponential.py  x_t, integrated over σ'               DPM-Solver++ 2M and 2S, DEIS
    flow_match.py   (1 - s) x_0 + s ε                     rectified flow

The model predicts ε, x_0 or v = α ε - σ x_0 (`prediction_type`). As α² + σ² = 1, each follows from any other:

    x_0 = (x - σ ε) / α = α x - σ v        ε = (x - α x_0) / σ = α v + σ x
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Callable, Optional, Union

import numpy as np

from opensora.errors import UserError
from opensora.schedulers.parameterization import Levels, noise_of, x0_of
from opensora.schedulers.schedule import (
    TRAIN_TIMESTEPS,
    Array,
    ScheduleOptions,
    cumulative_alphas,
    float32_like,
    gather,
)

Noise = Union[None, Array, Callable[[int], Array]]


class Scheduler:
    """A sampler: from noise to a sample, with one call of the model per timestep.

        scheduler.set_timesteps(n)
        x = noise * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            x = scheduler.step(model(scheduler.scale_model_input(x, t), t), t, x)

    Arrays are numpy or MindSpore; results are float32 and of the kind of x. A subclass defines its own spacing
    (`_spaced_timesteps`), what it computes from the timesteps of the steps (`_use_timesteps`), the update at a model
    call (`_step`) and the forward process (`add_noise`). Call all methods outside compiled Cells.
    """

    order = 1  # model calls per step, except for the last steps
    takes_timesteps = True  # False: the sampler works only with its own spacing
    timestep_range: tuple[float, float] = (0, TRAIN_TIMESTEPS - 1)
    whole_timesteps = False  # True: the state is defined at the training timesteps only, not between them
    history: tuple[str, ...] = ()  # attributes with what the next steps need of earlier ones: arrays, or lists of them

    def __init__(self, seed: Optional[int] = None, **options: Any):
        """
        Args:
            seed: of the noise that `step` samples when it is given none.
            options: the fields of `ScheduleOptions`.
        """
        self.options = ScheduleOptions(**options)
        self.timesteps = np.zeros(0, np.float32)
        self._generator = np.random.default_rng(seed)
        self._next = 0  # index of the expected timestep
        self._num_draws = 0
        self._reset()

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the initial state."""
        return 1.0

    def set_timesteps(
        self, num_inference_steps: Optional[int] = None, timesteps: Optional[Sequence[float]] = None
    ) -> None:
        """Sets `timesteps` (float32, one per model call) for the next trajectories. Takes one of the two arguments.

        Args:
            num_inference_steps: number of steps, which are spaced as the sampler does.
            timesteps: the training timesteps at which the steps start, one per step, strictly decreasing. The last step
                ends where the sampler always ends. For samplers of order 2, n timesteps are n steps of 2 n - 1 calls,
                and the repeated timesteps of the calls are not part of the list.

        Raises:
            UserError: the sampler does not support this number of steps, or these timesteps.
        """
        if (num_inference_steps is None) == (timesteps is None):
            raise UserError("set_timesteps takes either a number of steps or the timesteps")
        if num_inference_steps is None:
            steps = self._checked_timesteps(timesteps)
        elif num_inference_steps in range(1, TRAIN_TIMESTEPS + 1):
            steps = self._spaced_timesteps(int(num_inference_steps))
        else:
            raise UserError(f"the number of steps is {num_inference_steps}: choose 1 to {TRAIN_TIMESTEPS}")
        self.timesteps = self._use_timesteps(steps.astype(np.float32))
        self._reset()

    @property
    def prediction(self) -> str:
        """What the model predicts, of `opensora.schedulers.parameterization`."""
        return self.options.prediction

    def levels(self) -> Levels:
        """α and σ of the model's input at each of `timesteps`."""
        return Levels.of(self.prediction, map(self._input_alpha_sigma, range(len(self.timesteps))))

    def _input_alpha_sigma(self, index: int) -> tuple[float, float]:
        """α and σ of the model's input α x_0 + σ ε at timesteps[index]."""
        raise NotImplementedError

    def scale_model_input(self, x: Array, t: float) -> Array:
        """The model's input at timestep t, of variance near 1, for the state x."""
        return x

    def step(self, model_output: Array, t: float, x: Array, noise: Noise = None) -> Array:
        """The state after timestep t, float32, of the shape of x. Returning to the first timestep restarts the sampler.

        Args:
            t: one of `timesteps`.
            noise: N(0, 1) of x's shape, or a function k -> noise for the k-th draw (from 0) of this trajectory, or
                None: sampled from the scheduler's generator.
        """
        index = self._index(t)
        if index != self._next:
            self._reset()
        self._next = index + 1
        x = float32_like(x, x)
        return self._step(float32_like(model_output, x), index, x, lambda: self._sample_noise(noise, x))

    def state_dict(self) -> dict[str, Array]:
        """What the next step depends on besides x, to continue a trajectory in another process: arrays by name."""
        state: dict[str, Array] = {"next": np.array(self._next), "draws": np.array(self._num_draws)}
        for name in self.history:
            value = getattr(self, name, None)
            if isinstance(value, (list, tuple)):
                state.update({f"{name}.{number}": array for number, array in enumerate(value)})
            elif value is not None:
                state[name] = value
        return state

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Continues the trajectory of a `state_dict`, after `set_timesteps` with the same arguments."""
        self._reset()
        self._next, self._num_draws = int(state["next"]), int(state["draws"])
        for name in self.history:
            if name in state:
                setattr(self, name, state[name])
            elif f"{name}.0" in state:
                count = sum(key.startswith(f"{name}.") for key in state)
                setattr(self, name, [state[f"{name}.{number}"] for number in range(count)])

    def add_noise(self, x0: Array, noise: Array, t: Union[int, Array]) -> Array:
        """The state at training timestep t, a number or (B,), for samples x0 (B, ...); float32."""
        raise NotImplementedError

    def get_velocity(self, x0: Array, noise: Array, t: Union[int, Array]) -> Array:
        """The velocity target at training timestep t, a number or (B,); float32."""
        raise NotImplementedError

    def _spaced_timesteps(self, count: int) -> np.ndarray:
        """The timesteps at which `count` steps of the sampler's own spacing start."""
        raise NotImplementedError

    def _use_timesteps(self, steps: np.ndarray) -> np.ndarray:
        """Prepares for steps that start at these timesteps (n,); returns those of the model calls, both float32."""
        raise NotImplementedError

    def _checked_timesteps(self, timesteps: Any) -> np.ndarray:
        """The timesteps of a caller, (n,) float64; UserError for those that the sampler cannot take."""
        name, (least, most) = type(self).__name__, self.timestep_range
        if not self.takes_timesteps:
            raise UserError(f"{name} takes a number of steps, but no timesteps: it needs evenly spaced ones")
        try:
            steps = np.asarray(timesteps, np.float64)
        except (TypeError, ValueError) as error:
            raise UserError(f"timesteps should be numbers: {error}") from error
        if steps.ndim != 1 or not 1 <= len(steps) <= TRAIN_TIMESTEPS:
            raise UserError(f"timesteps should be a list of 1 to {TRAIN_TIMESTEPS} numbers, not {steps.shape}")
        kind = "a whole number" if self.whole_timesteps else "a number"
        for t in steps:
            if not least <= t <= most or (self.whole_timesteps and t != round(t)):  # False for NaN
                raise UserError(f"timestep {t:g}: {name} takes {kind} from {least} to {most}")
        for t, next_t in zip(steps, steps[1:]):
            if np.float32(next_t) >= np.float32(t):
                raise UserError(f"timesteps should decrease from step to step: {next_t:g} follows {t:g}")
        return steps

    def _step(self, output: Array, index: int, x: Array, sample_noise: Callable[[], Array]) -> Array:
        """The state after timesteps[index]; `sample_noise()` returns fresh noise."""
        raise NotImplementedError

    def _reset(self) -> None:
        """Forgets earlier steps. Multistep samplers extend this."""
        self._next = 0
        self._num_draws = 0

    def _index(self, t: float) -> int:
        """Index of t in `timesteps`. If t occurs twice: the expected index, else the one that starts a step."""
        t = float(t)
        if self._next < len(self.timesteps) and self.timesteps[self._next] == t:
            return self._next
        indices = np.flatnonzero(self.timesteps == t)
        if not len(indices):
            raise UserError(f"timestep {t:g} is not in scheduler.timesteps; set_timesteps(n) chooses them")
        return int(indices[-1])

    def _sample_noise(self, noise: Noise, x: Array) -> Array:
        if callable(noise):
            noise = noise(self._num_draws)
        elif noise is None:
            noise = self._generator.standard_normal(x.shape, dtype=np.float32)
        self._num_draws += 1
        if tuple(noise.shape) != tuple(x.shape):
            raise UserError(f"the noise has shape {tuple(noise.shape)}, the sample {tuple(x.shape)}")
        return float32_like(noise, x)


class DiffusionScheduler(Scheduler):
    """Samplers of variance-preserving diffusion: x_t = α_t x_0 + σ_t ε, α² + σ² = 1.

    `alphas_cumprod` (1000,) holds ᾱ of the training timesteps. Subclasses change their defaults by class attributes.
    """

    default_betas = ("linear", 1e-4, 0.02)
    snr_shift = 1.0
    # False: the published sampler never rescales; neither does this one, so that samples match, but it warns.
    can_rescale = True
    last_alpha_cumprod = 0.0  # with the rescale; solvers that divide by α need more than 0

    def __init__(self, seed: Optional[int] = None, **options):
        super().__init__(seed, **options)
        rescale = self.options.rescale_betas_zero_snr
        if rescale and not self.can_rescale:
            warnings.warn(
                f"{type(self).__name__} ignores rescale_betas_zero_snr: its published form has no rescale to zero SNR",
                stacklevel=2,
            )
            rescale = False
        schedule, start, end = self.default_betas
        self.alphas_cumprod = cumulative_alphas(
            self.options.beta_schedule or schedule,
            self.options.beta_start or start,
            self.options.beta_end or end,
            self.snr_shift,
            rescale,
        )
        if rescale:
            self.alphas_cumprod[-1] = self.last_alpha_cumprod

    def add_noise(self, x0: Array, noise: Array, t: Union[int, Array]) -> Array:
        """α_t x0 + σ_t noise."""
        alpha, sigma = self._gather_alpha_sigma(t, x0)
        return alpha * float32_like(x0, x0) + sigma * float32_like(noise, x0)

    def get_velocity(self, x0: Array, noise: Array, t: Union[int, Array]) -> Array:
        """α_t noise - σ_t x0 (Salimans & Ho 2022, "Progressive Distillation", section 4)."""
        alpha, sigma = self._gather_alpha_sigma(t, x0)
        return alpha * float32_like(noise, x0) - sigma * float32_like(x0, x0)

    def predicted_x0(self, output: Array, x: Array, alpha: float, sigma: float) -> Array:
        """The model's estimate of x_0 for its input x = alpha x_0 + sigma ε."""
        return x0_of(self.prediction, output, x, alpha, sigma)

    def predicted_noise(self, output: Array, x: Array, alpha: float, sigma: float) -> Array:
        """The model's estimate of ε for its input x = alpha x_0 + sigma ε."""
        return noise_of(self.prediction, output, x, alpha, sigma)

    def _gather_alpha_sigma(self, t: Union[int, Array], x: Array) -> tuple[Array, Array]:
        return gather(np.sqrt(self.alphas_cumprod), t, x), gather(np.sqrt(1 - self.alphas_cumprod), t, x)


@dataclass
class GuidedSampler:
    """A sampler with its number of steps and its classifier-free guidance scale, as one config entry sets them."""

    scheduler: Scheduler
    num_sampling_steps: int = 100
    cfg_scale: float = 7.5
