"""PNDM: Liu et al. 2022, "Pseudo Numerical Methods for Diffusion Models on Manifolds"."""

from __future__ import annotations

import numpy as np

from opensora.errors import UserError
from opensora.schedulers.arrays import Array
from opensora.schedulers.diffusion import TimestepScheduler

# Weights of the newest prediction, the one before it, ... by how many there are.
ADAMS_BASHFORTH = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}
RUNGE_KUTTA = (1 / 6, 1 / 3, 1 / 3, 1 / 6)


class PNDM(TimestepScheduler):
    """Algorithm 2 (F-PNDM): three Runge-Kutta steps of four model calls each, then one call per step (Adams-Bashforth).

    Both methods combine predictions, and `transfer` moves x by the result. As published, there is no rescale to zero
    SNR, and runs end at timestep 0 (some noise is left). Runs of fewer than four steps have fewer Runge-Kutta steps.
    """

    can_rescale = False

    @property
    def final_alpha_cumprod(self) -> float:
        return float(self.alphas_cumprod[0])

    def _run_timesteps(self, count: int) -> np.ndarray:
        timesteps = super()._run_timesteps(count)
        warm_up = min(3, count - 1)
        half = self.stride // 2
        stages = [(t, next_t + half, next_t + half, next_t) for t, next_t in zip(timesteps, timesteps[1 : warm_up + 1])]
        self._warm_up_calls = 4 * warm_up
        return np.append(np.ravel(stages), timesteps[warm_up:])

    def _start_run(self) -> None:
        super()._start_run()
        self._predictions = []  # at the starts of the last steps, newest first
        self._start = None

    def _step(self, output, index, x, draw):
        stage = index % 4
        if index >= self._warm_up_calls or stage == 0:
            self._predictions = [output, *self._predictions[:3]]
        if index < self._warm_up_calls:
            return self._runge_kutta(output, index, stage, x)
        t = int(self.timesteps[index])
        weights = ADAMS_BASHFORTH[len(self._predictions)]
        combined = sum(weight * prediction for weight, prediction in zip(weights, self._predictions))
        return self.transfer(combined, x, t, t - self.stride)

    def _runge_kutta(self, output: Array, index: int, stage: int, x: Array) -> Array:
        """Each stage starts where the step does; the first two lead to its middle, the others to its end."""
        t = int(self.timesteps[index])
        if stage == 0:
            self._start, self._mean = x, 0
        if self._start is None:
            raise UserError(f"PNDM can't start a run at timestep {t}, in the middle of a step")
        self._mean = self._mean + RUNGE_KUTTA[stage] * output
        slope = self._mean if stage == 3 else output
        next_t = t - self.stride // 2 if stage in (0, 2) else t
        return self.transfer(slope, self._start, int(self.timesteps[index - stage]), next_t)
