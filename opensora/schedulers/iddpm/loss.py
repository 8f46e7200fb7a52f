"""The hybrid training loss: L = mean squared error of the predicted noise + variational bound.

The bound trains only the variance: its gradient does not reach the noise prediction (Nichol & Dhariwal 2021, "Improved
Denoising Diffusion Probabilistic Models", sections 3.1 and 3.2). At t > 0 it is the KL divergence of the model's
transition from the posterior, at t = 0 the likelihood of the data (Ho et al. 2020, eq. 5).
"""

from __future__ import annotations

import math
from typing import Any, Optional

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from opensora.schedulers.iddpm.tables import Tables

MIN_PROBABILITY = 1e-12


class DiffusionLoss(nn.Cell):
    """The losses of each sample (B,), from the model's prediction for latents (B, C, T, H, W).

    Args:
        learn_sigma: the second half of the model's output interpolates the log variance between that of the posterior
            (-1) and log beta (1).
        sigma_small: without learn_sigma, the variance is the posterior's instead of beta.
        predict_xstart: the model predicts the latents instead of the noise.
        use_kl: the loss is the bound alone, times the number of timesteps.
        rescale: weights the bound as if there were 1000 timesteps.
        weights: (N,) weights of the squared error, by timestep.
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
        self.alpha = Tensor(tables.sqrt_alphas_cumprod)
        self.sigma = Tensor(tables.sqrt_one_minus_alphas_cumprod)
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
        """The model's input at timesteps t (B,). Conditioning frames, where `mask` (B, T) is 0, get timestep 0.

        Raises:
            UserError: a mask with `use_kl`.
        """
        if mask is not None and self.use_kl:
            raise ValueError("use_kl does not support masked frames: leave out mask_ratios or use_kl")
        x = gather(self.alpha, t) * x0 + gather(self.sigma, t) * noise
        if mask is None:
            return x
        return ops.where(_broadcast_frames(mask) > 0, x, self.alpha[0] * x0 + self.sigma[0] * noise)

    def construct(
        self, output: Tensor, x0: Tensor, x: Tensor, noise: Tensor, t: Tensor, mask: Optional[Tensor] = None
    ) -> tuple:
        """(loss, mse, vb), each (B,), of the model's output for x = noised(x0, noise, t, mask).

        Conditioning frames are excluded. mse or vb is None if the loss does not include it.
        """
        error, bound = self.terms(output, x0, x, noise, t)
        vb = None if bound is None else self.bound_weight * _mean(bound, mask)
        if error is None:
            return vb, None, vb
        mse = _mean(error, mask)
        if vb is None:
            return mse, mse, None
        return mse + vb, mse, vb

    def terms(self, output: Tensor, x0: Tensor, x: Tensor, noise: Tensor, t: Tensor) -> tuple:
        """The squared error and the bound of every element (B, C, T, H, W); None for what the loss does not include."""
        output = output.astype(ms.float32)
        variance = None
        if self.learn_sigma:
            output, variance = ops.chunk(output, 2, 1)
        if self.use_kl:
            return None, self.bound(output, variance, x0, x, t)
        error = (output - (x0 if self.predict_xstart else noise)).square()
        if self.weights is not None:
            error = gather(self.weights, t) * error
        if not self.learn_sigma:
            return error, None
        return error, self.bound(ops.stop_gradient(output), variance, x0, x, t)

    def bound(self, prediction: Tensor, variance: Optional[Tensor], x0: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The term of the variational bound at t (Ho et al. 2020, eq. 5), in bits, for every element."""
        coef1, coef2, log_posterior = gather(self.coef1, t), gather(self.coef2, t), gather(self.log_posterior, t)
        predicted_x0 = prediction
        if not self.predict_xstart:
            predicted_x0 = gather(self.recip, t) * x - gather(self.recipm1, t) * prediction
        mean, true_mean = coef1 * predicted_x0 + coef2 * x, coef1 * x0 + coef2 * x
        log_variance = self.log_variance(variance, t)
        divergence = 0.5 * (
            log_variance
            - log_posterior
            - 1
            + ops.exp(log_posterior - log_variance)
            + (true_mean - mean).square() * ops.exp(-log_variance)
        )
        likelihood = discretized_log_likelihood(x0, mean, 0.5 * log_variance)
        return ops.where(t.reshape(-1, 1, 1, 1, 1) == 0, -likelihood, divergence) / math.log(2)

    def log_variance(self, variance: Optional[Tensor], t: Tensor) -> Tensor:
        log_beta, log_posterior = gather(self.log_beta, t), gather(self.log_posterior, t)
        if variance is None:
            return log_posterior if self.sigma_small else log_beta
        fraction = 0.5 * (variance + 1)
        return fraction * log_beta + (1 - fraction) * log_posterior


class TrainingLoss(nn.Cell):
    """The mean loss of a batch, a scalar float32, in PyNative and in graph mode.

    Inputs: latents and noise (B, C, T, H, W), timesteps (B,) from `scheduler.timesteps`, the frame mask (B, T) (1:
    trained) or None, and the model's inputs after the timestep.
    """

    def __init__(self, model: nn.Cell, scheduler):
        super().__init__()
        self.model = model
        self.losses = scheduler.losses
        self.timestep_map = Tensor(scheduler.tables.timestep_map.astype(np.float32))

    def construct(self, x0: Tensor, noise: Tensor, t: Tensor, mask: Optional[Tensor], *conditions: Any) -> Tensor:
        x = self.losses.noised(x0, noise, t, mask)
        output = self.model(x, ops.gather(self.timestep_map, t, 0), *conditions)
        return self.losses(output, x0, x, noise, t, mask)[0].mean()


def gather(table: Tensor, t: Tensor) -> Tensor:
    """table[t] for t (B,), reshaped to multiply (B, C, T, H, W)."""
    return ops.gather(table, t, 0).reshape(-1, 1, 1, 1, 1)


def discretized_log_likelihood(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """log P of x rounded to 256 levels in [-1, 1], the outermost open, under a normal distribution.

    Ho et al. 2020, eq. 13, with the tanh approximation of the normal CDF that GELU also uses.
    """
    inverse = ops.exp(-log_std)
    above, below = _normal_cdf(inverse * (x - mean + 1 / 255)), _normal_cdf(inverse * (x - mean - 1 / 255))
    probability = ops.where(x < -0.999, above, ops.where(x > 0.999, 1 - below, above - below))
    return ops.log(ops.clamp(probability, MIN_PROBABILITY))


def _normal_cdf(x: Tensor) -> Tensor:
    # tanh(y) = 2 sigmoid(2 y) - 1; the CPU operator tanh has errors up to 1e-4. The sum 1 + tanh rounds small
    # probabilities to multiples of 2^-24, as in the published implementations: some become 0 and are clamped.
    tanh = 2 * ops.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)) - 1
    return 0.5 * (1 + tanh)


def _broadcast_frames(mask: Tensor) -> Tensor:
    """(B, T) -> (B, 1, T, 1, 1)."""
    return mask.reshape(mask.shape[0], 1, -1, 1, 1)


def _mean(values: Tensor, mask: Optional[Tensor]) -> Tensor:
    """(B, C, T, H, W) -> (B,): means over the frames selected by the mask (B, T); 0 if it selects none."""
    values = values.mean((1, 3, 4))  # B T
    if mask is None:
        return values.mean(1)
    mask = mask.astype(ms.float32)
    return (values * mask).sum(1) / ops.clamp(mask.sum(1), 1.0)
