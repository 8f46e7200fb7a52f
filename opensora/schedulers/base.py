"""What every sampler shares: its options, the course of a run, and fresh noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Optional, Union

import numpy as np

from opensora.config.families import PREDICTION_TYPES
from opensora.config.options import check_choice
from opensora.errors import UserError
from opensora.schedulers.arrays import Array, float32_like
from opensora.schedulers.noise_schedule import BETA_SCHEDULES, TIMESTEP_SPACINGS, TRAIN_TIMESTEPS

Noise = Union[None, Array, Callable[[int], Array]]


@dataclass(frozen=True)
class ScheduleOptions:
    """What every sampler can be told. None: the sampler's own default.

    prediction_type: what the model was trained to predict: the noise ε ("epsilon", the default), the velocity
        sqrt(ᾱ) ε - sqrt(1 - ᾱ) x_0 ("v_prediction", Salimans & Ho 2022, section 4) or x_0 ("sample").
    rescale_betas_zero_snr: the last training timestep is noise alone (Lin et al. 2023, algorithm 1).
    timestep_spacing: "linspace", "leading" or "trailing"; by default trailing with the rescale, else leading.
    beta_start, beta_end, beta_schedule: variances the model was trained with; "linear" or "scaled_linear".
    """

    prediction_type: Optional[str] = None
    rescale_betas_zero_snr: bool = False
    timestep_spacing: Optional[str] = None
    beta_start: Optional[float] = None
    beta_end: Optional[float] = None
    beta_schedule: Optional[str] = None

    def __post_init__(self):
        check_choice("prediction_type", self.prediction_type, (None, *PREDICTION_TYPES))
        check_choice("timestep_spacing", self.timestep_spacing, (None, *TIMESTEP_SPACINGS))
        check_choice("beta_schedule", self.beta_schedule, (None, *BETA_SCHEDULES))
        for name in ("beta_start", "beta_end"):
            beta = getattr(self, name)
            if beta is not None and not 0 < beta < 1:
                raise UserError(f"{name} is {beta}: choose a number between 0 and 1")

    @property
    def prediction(self) -> str:
        return self.prediction_type or "epsilon"

    @property
    def spacing(self) -> str:
        return self.timestep_spacing or ("trailing" if self.rescale_betas_zero_snr else "leading")


class Scheduler:
    """A sampler: from noise to a sample, one call of the model after the other.

        scheduler.set_timesteps(n)
        x = noise * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            x = scheduler.step(model(scheduler.scale_model_input(x, t), t), t, x)

    Arrays are numpy or MindSpore; what comes back is float32 and of the kind of x. A subclass says which timesteps a
    run visits (`_run_timesteps`), how x moves at one of them (`_step`) and how noise is added (`add_noise`). Call all
    of it outside compiled Cells.
    """

    order = 1  # calls of the model per step, but for the last steps
    init_noise_sigma = 1.0

    def __init__(self, seed: Optional[int] = None, **options):
        """`options` are those of `ScheduleOptions`; `seed` is for the noise that `step` draws when it is given none."""
        self.options = ScheduleOptions(**options)
        self.timesteps = np.zeros(0, np.float32)
        self._generator = np.random.default_rng(seed)
        self._start_run()

    def set_timesteps(self, num_inference_steps: int) -> None:
        """Chooses the timesteps (float32, one per call of the model) of runs of `num_inference_steps` steps.

        Raises UserError where the sampler can't run with so many steps.
        """
        if num_inference_steps not in range(1, TRAIN_TIMESTEPS + 1):
            raise UserError(f"the number of steps is {num_inference_steps}: choose 1 to {TRAIN_TIMESTEPS}")
        self.timesteps = self._run_timesteps(int(num_inference_steps)).astype(np.float32)
        self._start_run()

    def scale_model_input(self, x: Array, t: float) -> Array:
        """What the model is to see at timestep t, where x is the state of the run: variance near 1."""
        return x

    def step(self, model_output: Array, t: float, x: Array, noise: Noise = None) -> Array:
        """The state after timestep t, one of `timesteps`; shapes are alike, float32 comes back.

        noise: N(0, 1) of x's shape, or a function k -> noise for the k-th draw of this run (from 0), or None: drawn.
        Going back to the first timestep starts another run.
        """
        index = self._index(t)
        if index != self._next:
            self._start_run()
        self._next = index + 1
        x = float32_like(x, x)
        return self._step(float32_like(model_output, x), index, x, lambda: self._draw(noise, x))

    def add_noise(self, x0: Array, noise: Array, t: Union[int, Array]) -> Array:
        """The state of a run at training timestep t, a number or (B,), for samples x0 (B, ...); float32."""
        raise NotImplementedError

    def get_velocity(self, x0: Array, noise: Array, t: Union[int, Array]) -> Array:
        """What a model trained on velocities is to predict at training timestep t, a number or (B,); float32."""
        raise NotImplementedError

    def _run_timesteps(self, count: int) -> np.ndarray:
        raise NotImplementedError

    def _step(self, output: Array, index: int, x: Array, draw: Callable[[], Array]) -> Array:
        """The state after timesteps[index]; `draw()` gives fresh noise."""
        raise NotImplementedError

    def _start_run(self) -> None:
        """Forgets what earlier steps left behind. Subclasses with a memory extend this."""
        self._next = 0  # index of the timestep that is expected
        self._draws = 0

    def _index(self, t: float) -> int:
        """Place of t in `timesteps`. Of two places of one t it is the expected one, else the one that starts a step."""
        t = float(t)
        if self._next < len(self.timesteps) and self.timesteps[self._next] == t:
            return self._next
        places = np.flatnonzero(self.timesteps == t)
        if not len(places):
            raise UserError(f"timestep {t:g} is none of this run's; set_timesteps(n) chooses them")
        return int(places[-1])

    def _draw(self, noise: Noise, x: Array) -> Array:
        if callable(noise):
            noise = noise(self._draws)
        elif noise is None:
            noise = self._generator.standard_normal(x.shape, dtype=np.float32)
        self._draws += 1
        if tuple(noise.shape) != tuple(x.shape):
            raise UserError(f"the noise has shape {tuple(noise.shape)}, the sample {tuple(x.shape)}")
        return float32_like(noise, x)
