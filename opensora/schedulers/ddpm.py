"""DDPM: Ho, Jain & Abbeel 2020, "Denoising Diffusion Probabilistic Models"."""

from __future__ import annotations

from opensora.schedulers.diffusion import TimestepScheduler


class DDPM(TimestepScheduler):
    """Algorithm 2 with the posterior q(x_{t-1} | x_t, x_0) of equations 6 and 7; draws noise at every t > 0."""

    def _step(self, output, index, x, draw):
        t = int(self.timesteps[index])
        alpha, sigma = self._levels(t)
        next_alpha, next_sigma = self._levels(t - self.stride)
        kept = alpha / next_alpha  # sqrt(α_t) of the paper: what the noise between the two levels leaves of the signal
        beta = 1 - kept**2
        x0 = self.predicted_x0(output, x, alpha, sigma)
        mean = (next_alpha * beta / sigma**2) * x0 + (kept * next_sigma**2 / sigma**2) * x
        if t == 0:
            return mean
        return mean + (beta**0.5 * next_sigma / sigma) * draw()
