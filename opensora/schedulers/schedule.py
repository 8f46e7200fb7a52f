"""Noise schedules, timestep spacings and the options of every sampler.

Notation of all samplers: x_t = α_t x_0 + σ_t ε with α_t = sqrt(ᾱ_t), σ_t = sqrt(1 - ᾱ_t), t = 0 ... 999
(Ho et al. 2020, "Denoising Diffusion Probabilistic Models", eq. 4), where ᾱ_t is the cumulative product of 1 - β_t.

    linear         β_t linear in t                        Ho et al. 2020, section 4
    scaled_linear  sqrt(β_t) linear in t                  Rombach et al. 2022, latent diffusion
    shifted SNR    ᾱ / (1 - ᾱ) divided by a constant      Esser et al. 2024, section 5.3.2
    zero SNR       sqrt(ᾱ) shifted and scaled, ᾱ_999 = 0  Lin et al. 2023, algorithm 1

The functions on arrays take numpy arrays and MindSpore Tensors; results are float32 and of the caller's kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Optional, Union

import numpy as np

from opensora.config.families import PREDICTION_TYPES
from opensora.config.options import check_choice
from opensora.errors import UserError

if TYPE_CHECKING:
    from mindspore import Tensor

Array = Union[np.ndarray, "Tensor"]

TRAIN_TIMESTEPS = 1000
BETA_SCHEDULES = ("linear", "scaled_linear")
TIMESTEP_SPACINGS = ("linspace", "leading", "trailing")


@dataclass(frozen=True)
class ScheduleOptions:
    """Options common to all samplers. None selects the sampler's own default.

    prediction_type: what the model was trained to predict: the noise ε ("epsilon", the default), the velocity
        sqrt(ᾱ) ε - sqrt(1 - ᾱ) x_0 ("v_prediction", Salimans & Ho 2022, section 4) or x_0 ("sample").
    rescale_betas_zero_snr: the last training timestep is pure noise (Lin et al. 2023, algorithm 1).
    timestep_spacing: "linspace", "leading" or "trailing"; the default is trailing with the rescale, else leading.
    beta_start, beta_end, beta_schedule: variances the model was trained with; "linear" or "scaled_linear".
    """

    prediction_type: Optional[str] = None
    rescale_betas_zero_snr: bool = False
    timestep_spacing: Optional[str] = None
    beta_start: Optional[float] = None
    beta_end: Optional[float] = None
    beta_schedule: Optional[str] = None

    def __post_init__(self) -> None:
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


def cumulative_alphas(
    schedule: str, beta_start: float, beta_end: float, snr_shift: float = 1.0, zero_snr: bool = False
) -> np.ndarray:
    """ᾱ_t of the training timesteps, (1000,) float64.

    Args:
        schedule: one of BETA_SCHEDULES.
        snr_shift: divisor of the signal-to-noise ratio ᾱ / (1 - ᾱ).
        zero_snr: rescale so that the last ratio is 0.
    """
    if schedule == "linear":
        betas = np.linspace(beta_start, beta_end, TRAIN_TIMESTEPS)
    else:
        betas = np.linspace(beta_start**0.5, beta_end**0.5, TRAIN_TIMESTEPS) ** 2
    alphas_cumprod = np.cumprod(1 - betas)
    alphas_cumprod = alphas_cumprod / (snr_shift + (1 - snr_shift) * alphas_cumprod)
    return _rescale_to_zero_snr(alphas_cumprod) if zero_snr else alphas_cumprod


def _rescale_to_zero_snr(alphas_cumprod: np.ndarray) -> np.ndarray:
    """Lin et al. 2023, "Common Diffusion Noise Schedules and Sample Steps are Flawed", algorithm 1."""
    alpha = np.sqrt(alphas_cumprod)
    return ((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])) ** 2


def spaced_timesteps(spacing: str, count: int, skip_zero: bool = False) -> np.ndarray:
    """`count` training timesteps in decreasing order (Lin et al. 2023, table 2); `linspace` gives fractions.

    With `skip_zero`, `linspace` and `leading` space count + 1 timesteps and drop the last one, t = 0: solvers that
    step to a final σ of their own need no model call there.
    """
    if spacing == "trailing":
        # arange, as published: its rounding decides ties of round(). It may return one element too many.
        return np.arange(TRAIN_TIMESTEPS, 0, -TRAIN_TIMESTEPS / count)[:count].round() - 1
    spaced = count + skip_zero
    increasing: np.ndarray
    if spacing == "linspace":
        increasing = np.linspace(0, TRAIN_TIMESTEPS - 1, spaced)
    else:
        increasing = np.arange(spaced) * (TRAIN_TIMESTEPS // spaced)
    return increasing[::-1][:count]


def float32_like(array: Array, x: Array) -> Array:
    """`array` in float32, as a numpy array or a Tensor like x."""
    return _same_kind(array, x).astype("float32")


def per_sample(values: Union[float, Array], x: Array) -> Array:
    """A number or (B,) values in float32, reshaped to multiply x (B, ...)."""
    return float32_like(np.asarray(values) if np.isscalar(values) else values, x).reshape((-1,) + (1,) * (x.ndim - 1))


def gather(table: np.ndarray, t: Union[int, Array], x: Array) -> Array:
    """table[t] for timesteps t, a number or (B,), in float32, reshaped to multiply x (B, ...)."""
    t = _same_kind(np.asarray(t) if np.isscalar(t) else t, x)
    if isinstance(t, np.ndarray):
        if t.min() < 0 or t.max() >= len(table):
            raise UserError(f"timesteps are {t.min()} to {t.max()}: choose 0 to {len(table) - 1}")
        return per_sample(table[t.astype(np.int64)], x)
    return per_sample(_same_kind(table.astype(np.float32), x)[t.astype("int32")], x)


def _same_kind(array: Array, x: Array) -> Array:
    """`array` as a numpy array or a Tensor, whichever x is."""
    if isinstance(x, np.ndarray):
        return array if isinstance(array, np.ndarray) else array.asnumpy()
    from mindspore import Tensor  # imported here, because numpy users need no MindSpore

    return array if isinstance(array, Tensor) else Tensor(array)
