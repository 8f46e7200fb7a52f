"""What training minimises: the error of the predicted noise, and the bound that teaches the variance.

Nichol & Dhariwal 2021, "Improved Denoising Diffusion Probabilistic Models", sections 3.1 and 3.2.
"""

from __future__ import annotations

import math
from typing import Optional

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from opensora.errors import UserError
from opensora.schedulers.iddpm.tables import Tables

LEAST_PROBABILITY = 1e-12


class DiffusionLoss(nn.Cell):
    """The losses of each sample (B,), from what the model predicts for latents (B, C, T, H, W).

    Args:
        learn_sigma: the model's output has a second half, which places the logarithm of the variance between those of
            the posterior (-1) and of beta (1).
        sigma_small: else the variance is the posterior's, not beta.
        predict_xstart: the model predicts the latents themselves, not the noise.
        use_kl: the bound alone, times the number of timesteps.
        rescale: the bound counts as if there were 1000 timesteps.
        weights: (N,) factors of the squared error, by timestep.
    """

    def __init__(
        self,
        tables: Tables,
        learn_sigma: bool = True,
        sigma_small: bool = False,
        predict_xstart: bool = False,
        use_kl: bool = False,
        rescale: bool = False,
        weights: Optional[np.ndarray] = None,
    ):
        super().__init__()
        self.signal = Tensor(tables.sqrt_alphas_cumprod)
        self.deviation = Tensor(tables.sqrt_one_minus_alphas_cumprod)
        self.recip, self.recipm1 = Tensor(tables.sqrt_recip_alphas_cumprod), Tensor(tables.sqrt_recipm1_alphas_cumprod)
        self.coef1, self.coef2 = Tensor(tables.posterior_mean_coef1), Tensor(tables.posterior_mean_coef2)
        self.log_posterior = Tensor(tables.posterior_log_variance_clipped)
        self.log_beta = Tensor(np.log(tables.betas))
        self.weights = None if weights is None else Tensor(weights.astype(np.float32))
        self.learn_sigma, self.sigma_small, self.predict_xstart = learn_sigma, sigma_small, predict_xstart
        self.use_kl = use_kl
        steps = len(tables.betas)
        self.bound_weight = float(steps) if use_kl else steps / 1000 if rescale else 1.0

    def noised(self, x0: Tensor, noise: Tensor, t: Tensor, mask: Optional[Tensor] = None) -> Tensor:
        """What the model sees at timesteps t (B,): given frames, where `mask` (B, T) is 0, with the noise of the first.

        Raises:
            UserError: a mask with `use_kl`.
        """
        if mask is not None and self.use_kl:
            raise UserError("use_kl has no loss for a part of the frames: leave out mask_ratios or use_kl")
        x = at(self.signal, t) * x0 + at(self.deviation, t) * noise
        if mask is None:
            return x
        return ops.where(_frames(mask) > 0, x, self.signal[0] * x0 + self.deviation[0] * noise)

    def construct(
        self, output: Tensor, x0: Tensor, x: Tensor, noise: Tensor, t: Tensor, mask: Optional[Tensor] = None
    ) -> tuple:
        """(loss, mse, vb), each (B,), of the model's output for x = noised(x0, noise, t, mask); given frames count
        nothing. mse or vb is None where it is no part of the loss."""
        output = output.astype(ms.float32)
        variance = None
        if self.learn_sigma:
            output, variance = ops.chunk(output, 2, 1)
        if self.use_kl:
            bound = self.bound_weight * _mean(self.bound(output, variance, x0, x, t), mask)
            return bound, None, bound
        error = (output - (x0 if self.predict_xstart else noise)).square()
        if self.weights is not None:
            error = at(self.weights, t) * error
        mse = _mean(error, mask)
        if not self.learn_sigma:
            return mse, mse, None
        bound = self.bound_weight * _mean(self.bound(ops.stop_gradient(output), variance, x0, x, t), mask)
        return mse + bound, mse, bound

    def bound(self, prediction: Tensor, variance: Optional[Tensor], x0: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The term of the variational bound at t (Ho et al. 2020, eq. 5), in bits, of every element."""
        coef1, coef2, log_posterior = at(self.coef1, t), at(self.coef2, t), at(self.log_posterior, t)
        predicted_x0 = prediction if self.predict_xstart else at(self.recip, t) * x - at(self.recipm1, t) * prediction
        mean, true_mean = coef1 * predicted_x0 + coef2 * x, coef1 * x0 + coef2 * x
        log_variance = self.log_variance(variance, t)
        divergence = 0.5 * (
            log_variance
            - log_posterior
            - 1
            + ops.exp(log_posterior - log_variance)
            + (true_mean - mean).square() * ops.exp(-log_variance)
        )
        likelihood = log_likelihood_of_levels(x0, mean, 0.5 * log_variance)
        return ops.where(t.reshape(-1, 1, 1, 1, 1) == 0, -likelihood, divergence) / math.log(2)

    def log_variance(self, variance: Optional[Tensor], t: Tensor) -> Tensor:
        log_beta, log_posterior = at(self.log_beta, t), at(self.log_posterior, t)
        if variance is None:
            return log_posterior if self.sigma_small else log_beta
        share = 0.5 * (variance + 1)
        return share * log_beta + (1 - share) * log_posterior


class TrainingLoss(nn.Cell):
    """The mean loss of a batch, a scalar float32: what training differentiates, in PyNative and in graph mode.

    Arguments: latents and noise (B, C, T, H, W), timesteps (B,) of `scheduler.timesteps`, the text (B, 1, L, D), its
    mask (B, L), num_frames, height, width, ar, fps (B,), the mask of frames (B, T) (1: trained) or None.
    """

    def __init__(self, model: nn.Cell, scheduler):
        super().__init__()
        self.model = model
        self.losses = scheduler.losses
        self.timestep_map = Tensor(scheduler.tables.timestep_map.astype(np.float32))

    def construct(
        self,
        x0: Tensor,
        noise: Tensor,
        t: Tensor,
        text: Tensor,
        text_mask: Optional[Tensor],
        num_frames: Tensor,
        height: Tensor,
        width: Tensor,
        ar: Tensor,
        fps: Tensor,
        mask: Optional[Tensor] = None,
    ) -> Tensor:
        x = self.losses.noised(x0, noise, t, mask)
        x_mask = None if mask is None else mask > 0
        output = self.model(
            x, ops.gather(self.timestep_map, t, 0), text, text_mask, x_mask, num_frames, height, width, ar, fps
        )
        return self.losses(output, x0, x, noise, t, mask)[0].mean()


def at(table: Tensor, t: Tensor) -> Tensor:
    """table[t] for t (B,), shaped to multiply (B, C, T, H, W)."""
    return ops.gather(table, t, 0).reshape(-1, 1, 1, 1, 1)


def log_likelihood_of_levels(x: Tensor, mean: Tensor, log_deviation: Tensor) -> Tensor:
    """log P of x rounded to 256 levels of [-1, 1], whose outermost are open, under a normal distribution.

    Ho et al. 2020, eq. 13, with the distribution function in the tanh form that also GELU has.
    """
    inverse = ops.exp(-log_deviation)
    above, below = _normal_cdf(inverse * (x - mean + 1 / 255)), _normal_cdf(inverse * (x - mean - 1 / 255))
    probability = ops.where(x < -0.999, above, ops.where(x > 0.999, 1 - below, above - below))
    return ops.log(ops.clamp(probability, LEAST_PROBABILITY))


def _normal_cdf(x: Tensor) -> Tensor:
    # sigmoid(2 y) is (1 + tanh(y)) / 2; on a CPU the operator tanh is off by up to 1e-4.
    return ops.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))


def _frames(mask: Tensor) -> Tensor:
    """(B, T) -> (B, 1, T, 1, 1)."""
    return mask.reshape(mask.shape[0], 1, -1, 1, 1)


def _mean(values: Tensor, mask: Optional[Tensor]) -> Tensor:
    """(B, C, T, H, W) -> (B,): means over the frames that the mask (B, T) lets count; 0 where it is none."""
    values = values.mean((1, 3, 4))  # B T
    if mask is None:
        return values.mean(1)
    mask = mask.astype(ms.float32)
    return (values * mask).sum(1) / ops.clamp(mask.sum(1), 1.0)
