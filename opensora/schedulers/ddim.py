"""DDIM: Song, Meng & Ermon 2020, "Denoising Diffusion Implicit Models"."""

from __future__ import annotations

from opensora.schedulers.diffusion import TimestepScheduler


class DDIM(TimestepScheduler):
    """Equation 12 with η = 0: the predicted noise carries the predicted x_0 to the next level; nothing is drawn."""

    def _step(self, output, index, x, draw):
        t = int(self.timesteps[index])
        return self.transfer(output, x, t, t - self.stride)
