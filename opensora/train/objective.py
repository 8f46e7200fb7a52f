"""The training objective of a diffusion model: timesteps, noise levels, prediction targets, loss weights.

Input and target are linear in the clean latents and the noise, so a timestep determines five numbers (`Coefficients`).
They are computed on the host in float64; the device only applies them. The objective of a learned variance is that of
`opensora.schedulers.iddpm`.
"""

from __future__ import annotations

from statistics import NormalDist
from typing import NamedTuple, Optional, Union

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from opensora.errors import UserError
from opensora.schedulers.iddpm import IDDPM
from opensora.schedulers.schedule import TRAIN_TIMESTEPS, cumulative_alphas
from opensora.train.t2v_options import ObjectiveOptions


class Coefficients(NamedTuple):
    """For each sample, float32 (B,): input = signal x0 + noise eps, target = target_signal x0 + target_noise eps."""

    timestep: np.ndarray
    signal: np.ndarray
    noise: np.ndarray
    target_signal: np.ndarray
    target_noise: np.ndarray
    weight: np.ndarray


class Discrete:
    """A process with the timesteps 0 ... 999 (Ho et al. 2020)."""

    def timesteps(self, uniform: np.ndarray, stratum: np.ndarray, strata: int) -> np.ndarray:
        """(B,) numbers in [0, 1) -> (B,) timesteps, stratified over `strata` equal intervals.

        The samples of a step have different intervals, so together they cover the whole range.

        Args:
            stratum: (B,) the index of each sample's interval.
        """
        first, last = (TRAIN_TIMESTEPS * (stratum + end) / strata - 0.5 for end in (0, 1))
        return np.clip(np.rint(first + (last - first) * uniform), 0, TRAIN_TIMESTEPS - 1).astype(np.int64)


class Diffusion(Discrete):
    """A prediction weighted by min-SNR-gamma (Hang et al. 2023, section 3.4)."""

    def __init__(self, options: ObjectiveOptions):
        self.options = options
        if options.cogvideox_scheduler:
            betas = ("scaled_linear", 0.00085, 0.012, 3.0, True)
        elif options.v1_5_scheduler:
            betas = ("scaled_linear", 0.00085, 0.012, 1.0, options.rescale_betas_zero_snr)
        else:
            betas = ("linear", 1e-4, 0.02, 1.0, options.rescale_betas_zero_snr)
        self.alphas_cumprod = cumulative_alphas(*betas)

    def coefficients(self, timesteps: np.ndarray) -> Coefficients:
        alpha = self.alphas_cumprod[timesteps]
        signal, noise = np.sqrt(alpha), np.sqrt(1 - alpha)
        zero, one = np.zeros_like(alpha), np.ones_like(alpha)
        target = {"epsilon": (zero, one), "v_prediction": (-noise, signal), "sample": (one, zero)}
        return _coefficients(timesteps, signal, noise, *target[self.options.prediction_type], self.weights(alpha))

    def weights(self, alpha: np.ndarray) -> np.ndarray:
        """min(SNR, gamma) / SNR (epsilon; 1 in the limit SNR -> 0) or min(SNR, gamma) / (SNR + 1) (velocity)."""
        gamma = self.options.snr_gamma
        if gamma is None:
            return np.ones_like(alpha)
        noise = 1 - alpha
        clipped = np.minimum(alpha, gamma * noise)  # min(SNR, gamma) (1 - alpha), finite at both ends
        if self.options.prediction_type == "v_prediction":
            return clipped
        return np.divide(clipped, alpha, out=np.ones_like(alpha), where=alpha > 0)


class RectifiedFlow:
    """x = (1 - sigma) x0 + sigma eps, target eps - x0 (Liu et al. 2023); densities of sigma: Esser et al. 2024."""

    def __init__(self, options: ObjectiveOptions):
        self.options = options

    def timesteps(self, uniform: np.ndarray, stratum: np.ndarray, strata: int) -> np.ndarray:
        """(B,) numbers in [0, 1) -> (B,) timesteps 1000 ... 1, with the density of the weighting scheme."""
        options, u = self.options, (stratum + uniform) / strata
        if options.weighting_scheme == "logit_normal":
            u = 1 / (1 + np.exp(-(options.logit_mean + options.logit_std * _normal_quantile(u))))
        elif options.weighting_scheme == "mode":
            u = 1 - u - options.mode_scale * (np.cos(np.pi * u / 2) ** 2 - 1 + u)
        index = np.clip(np.floor(TRAIN_TIMESTEPS * u), 0, TRAIN_TIMESTEPS - 1)
        return (TRAIN_TIMESTEPS - index).astype(np.int64)

    def coefficients(self, timesteps: np.ndarray) -> Coefficients:
        sigma = timesteps / TRAIN_TIMESTEPS
        one = np.ones_like(sigma)
        weight = {"sigma_sqrt": sigma**-2.0, "cosmap": 2 / (np.pi * (1 - 2 * sigma + 2 * sigma**2))}
        return _coefficients(timesteps, 1 - sigma, sigma, -one, one, weight.get(self.options.weighting_scheme, one))


class LearnedVariance(Discrete):
    """The noise and its variance are predicted (Nichol & Dhariwal 2021); `LearnedVarianceLoss` has the tables."""

    def __init__(self, options: ObjectiveOptions):
        """Raises UserError for options of another objective."""
        if options != ObjectiveOptions():
            raise UserError(
                "a model that predicts the variance of the noise is trained with the published objective alone: leave "
                "out --prediction_type, --snr_gamma, --noise_offset, --rescale_betas_zero_snr and the flags of other "
                "schedulers"
            )

    def coefficients(self, timesteps: np.ndarray) -> tuple[np.ndarray]:
        return (timesteps.astype(np.int32),)


Objective = Union[Diffusion, RectifiedFlow, LearnedVariance]


def make_objective(options: ObjectiveOptions, learned_variance: bool = False) -> Objective:
    """The objective of a model; `learned_variance`: its output has the variance, too."""
    if learned_variance:
        return LearnedVariance(options)
    return RectifiedFlow(options) if options.rf_scheduler else Diffusion(options)


def make_loss(objective: Objective, model: nn.Cell, images: int = 0) -> nn.Cell:
    """The loss of an objective; `images`: how many follow each video, for a model that takes `use_image_num`."""
    return (LearnedVarianceLoss if isinstance(objective, LearnedVariance) else DenoisingLoss)(model, images)


def _coefficients(*columns: np.ndarray) -> Coefficients:
    return Coefficients(*(column.astype(np.float32) for column in columns))


def _normal_quantile(u: np.ndarray) -> np.ndarray:
    return np.array([NormalDist().inv_cdf(min(max(value, 1e-7), 1 - 1e-7)) for value in u])


class DenoisingLoss(nn.Cell):
    """The weighted squared error of a model's prediction, a scalar float32.

    Args:
        x0, eps: clean latents and noise (B, C, T, H, W).
        timestep, signal, noise, target_signal, target_noise, weight: `Coefficients` as Tensors (B,).
        text, text_mask: (B, 1, L, D) and (B, 1, L).
        mask: of the latents, (B, T, H, W), or None.
        condition: conditioning of an inpaint model, (B, C', T, H, W), concatenated with the noisy latents, or None.

    With N `images` after each video, T is T + N, and the text has 1 + N rows.
    """

    def __init__(self, model: nn.Cell, images: int = 0):
        super().__init__()
        self.model = model
        self.joint = joint_arguments(images)

    def construct(
        self,
        x0: Tensor,
        eps: Tensor,
        timestep: Tensor,
        signal: Tensor,
        noise: Tensor,
        target_signal: Tensor,
        target_noise: Tensor,
        weight: Tensor,
        text: Tensor,
        text_mask: Optional[Tensor],
        mask: Optional[Tensor] = None,
        condition: Optional[Tensor] = None,
    ) -> Tensor:
        x = mix(signal, x0, noise, eps)
        if condition is not None:
            x = ops.cat((x, condition), 1)
        prediction = self.model(x, timestep, text, mask, text_mask, *self.joint)
        return weighted_error(prediction, mix(target_signal, x0, target_noise, eps), weight, mask)


class LearnedVarianceLoss(nn.Cell):
    """The mean over a batch of the squared error of the noise and the bound that trains the variance, float32.

    The loss of Open-Sora-Plan v1.0 and v1.1: 1000 timesteps, linear betas. Both terms are multiplied by the mask of the
    latents and averaged over all elements, masked ones included. Inputs as of `DenoisingLoss`, but the timesteps (B,)
    are integers, and there are no other coefficients.
    """

    def __init__(self, model: nn.Cell, images: int = 0):
        super().__init__()
        self.model = model
        self.losses = IDDPM().losses
        self.joint = joint_arguments(images)

    def construct(
        self,
        x0: Tensor,
        eps: Tensor,
        timestep: Tensor,
        text: Tensor,
        text_mask: Optional[Tensor],
        mask: Optional[Tensor] = None,
        condition: Optional[Tensor] = None,
    ) -> Tensor:
        x = self.losses.noised(x0, eps, timestep)
        output = self.model(x, timestep.astype(ms.float32), text, mask, text_mask, *self.joint)
        error, bound = self.losses.terms(output, x0, x, eps, timestep)
        loss = error + bound
        return (loss if mask is None else loss * mask.astype(ms.float32).expand_dims(1)).mean()


def joint_arguments(images: int) -> tuple:
    """The arguments of a model after `encoder_attention_mask`, up to `use_image_num`; none without images."""
    return (None, None, None, images) if images else ()


def mix(a: Tensor, x: Tensor, b: Tensor, y: Tensor) -> Tensor:
    """a x + b y for a, b (B,) and x, y (B, C, T, H, W), in float32."""
    return a.reshape(-1, 1, 1, 1, 1) * x.astype(ms.float32) + b.reshape(-1, 1, 1, 1, 1) * y.astype(ms.float32)


def weighted_error(prediction: Tensor, target: Tensor, weight: Tensor, mask: Optional[Tensor]) -> Tensor:
    """The mean of weight (prediction - target)^2 over unmasked positions; not divided by the sum of the weights."""
    error = weight.reshape(-1, 1, 1, 1, 1) * (prediction.astype(ms.float32) - target) ** 2
    if mask is None:
        return error.mean()
    mask = mask.astype(ms.float32).expand_dims(1)  # B 1 T H W
    return (error * mask).sum() / (mask.sum() * error.shape[1])
