"""DPM-Solver++(2M) over times of equal distance, as Open-Sora v1.1 runs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from mindspore import Tensor
from tqdm import tqdm

from opensora.errors import UserError
from opensora.schedulers.dpm_solver_multistep import DPMSolverMultistep
from opensora.schedulers.iddpm.guidance import Noise, as_latents, guided
from opensora.schedulers.noise_schedule import TRAIN_TIMESTEPS


class TimeUniform(DPMSolverMultistep):
    """`DPMSolverMultistep` from time 1 to 1/1000; timesteps are fractions, between which log α is linear.

    Only runs of few steps end with one of first order.
    """

    def _run_timesteps(self, count: int) -> np.ndarray:
        times = np.linspace(1, 1 / TRAIN_TIMESTEPS, count + 1)
        known = np.arange(1, TRAIN_TIMESTEPS + 1) / TRAIN_TIMESTEPS
        log_alpha = np.interp(times, known, 0.5 * np.log(self.alphas_cumprod))
        self.sigmas = np.sqrt(np.expm1(-2 * log_alpha))  # noise over signal
        return (times[:-1] - 1 / TRAIN_TIMESTEPS) * TRAIN_TIMESTEPS

    def _is_last(self, index: int) -> bool:
        return len(self.timesteps) < 10 and super()._is_last(index)


@dataclass
class DPMSolver:
    """Sampling only, of models that predict noise; a variance they predict beside it is left aside."""

    num_sampling_steps: int = 20
    cfg_scale: float = 4.0

    def __post_init__(self):
        self.solver = TimeUniform()
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
        """From noise to latents; the package's docstring explains the arguments. NoiseSource no noise.

        Raises:
            UserError: a mask by which frames are given.
        """
        if mask is not None and np.min(mask.asnumpy() if isinstance(mask, Tensor) else mask) < 1:
            raise UserError("dpm-solver makes all frames and keeps none: for references use the scheduler iddpm")
        predict, x = guided(model, model_args, self.cfg_scale), as_latents(latents)
        for t in tqdm(self.solver.timesteps, desc="denoising", unit="step", leave=False, disable=not progress):
            x = self.solver.step(predict(x, float(t), None)[:, : x.shape[1]], t, x)
        return x

    def training_losses(self, *args, **kwargs):
        raise UserError("dpm-solver is for sampling only: train with iddpm or iddpm-speed")
