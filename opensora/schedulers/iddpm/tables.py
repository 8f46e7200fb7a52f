"""Respacing: a subset of the training timesteps, and the coefficients of the diffusion process over that subset.

Forward process: x_t = sqrt(ᾱ_t) x_0 + sqrt(1 - ᾱ_t) ε (Ho et al. 2020, eq. 4). For kept timesteps s_0 < s_1 < ...,
β_i = 1 - ᾱ_{s_i} / ᾱ_{s_{i-1}}. The posterior q(x_{i-1} | x_i, x_0) has the mean coef1 x_0 + coef2 x_i (eq. 7).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from opensora.config.options import check_choice
from opensora.errors import UserError
from opensora.schedulers.schedule import TRAIN_TIMESTEPS

NOISE_SCHEDULES = ("linear", "squaredcos_cap_v2")


class Tables(NamedTuple):
    """Coefficients of the N kept timesteps, each (N,); `timestep_map` holds the original timesteps.

    The others are float32 and computed in the order of the published code: 1 - ᾱ has few digits at the first timestep.
    """

    timestep_map: np.ndarray
    betas: np.ndarray
    alphas_cumprod: np.ndarray
    alphas_cumprod_prev: np.ndarray
    sqrt_alphas_cumprod: np.ndarray
    sqrt_one_minus_alphas_cumprod: np.ndarray
    sqrt_recip_alphas_cumprod: np.ndarray
    sqrt_recipm1_alphas_cumprod: np.ndarray
    posterior_variance: np.ndarray
    posterior_log_variance_clipped: np.ndarray
    posterior_mean_coef1: np.ndarray
    posterior_mean_coef2: np.ndarray


def make_tables(noise_schedule: str, total: int, respacing: str) -> Tables:
    """Tables of `total` timesteps, or of those that `respacing` keeps (see `kept_timesteps`).

    Raises:
        UserError: an unknown schedule, or an invalid respacing.
    """
    one = np.float32(1)
    kept = kept_timesteps(respacing, total)
    alphas_cumprod = np.cumprod(1 - training_betas(noise_schedule, total))[kept]
    betas = (1 - alphas_cumprod / np.append(1.0, alphas_cumprod[:-1])).astype(np.float32)
    alphas_cumprod = np.cumprod(one - betas, dtype=np.float64).astype(np.float32)
    previous = np.append(one, alphas_cumprod[:-1])
    variance = betas * (one - previous) / (one - alphas_cumprod)
    # The first variance is 0; its log is replaced by that of the second.
    clipped = np.append(variance[1:2], variance[1:]) if len(kept) > 1 else betas
    return Tables(
        kept,
        betas,
        alphas_cumprod,
        previous,
        np.sqrt(alphas_cumprod),
        np.sqrt(one - alphas_cumprod),
        np.sqrt(one / alphas_cumprod),
        np.sqrt(one / alphas_cumprod - one),
        variance,
        np.log(clipped),
        betas * np.sqrt(previous) / (one - alphas_cumprod),
        (one - previous) * np.sqrt(one - betas) / (one - alphas_cumprod),
    )


def training_betas(noise_schedule: str, total: int) -> np.ndarray:
    """Variances of the training timesteps, (total,) float64.

    "linear" is that of Ho et al. 2020, scaled to `total`; "squaredcos_cap_v2" is the cosine schedule of Nichol &
    Dhariwal 2021, eq. 17.
    """
    if noise_schedule not in NOISE_SCHEDULES:
        check_choice("noise_schedule", noise_schedule, NOISE_SCHEDULES)
    if noise_schedule == "linear":
        scale = TRAIN_TIMESTEPS / total
        return np.linspace(scale * 1e-4, scale * 0.02, total)
    alphas_cumprod = np.cos((np.arange(total + 1) / total + 0.008) / 1.008 * math.pi / 2) ** 2
    return np.minimum(1 - alphas_cumprod[1:] / alphas_cumprod[:-1], 0.999)


def kept_timesteps(respacing: str, total: int) -> np.ndarray:
    """The kept timesteps out of `total`, increasing.

    Args:
        respacing: "" keeps all; "ddim25": constant stride that yields 25 steps (Song et al. 2020); "10,15,20": that
            many of each third, evenly spaced from its first to its last.
    """
    if not respacing:
        return np.arange(total)
    try:
        if respacing.startswith("ddim"):
            return _strided(int(respacing[len("ddim") :]), total)
        return _in_sections([int(count) for count in respacing.split(",")], total)
    except ValueError as error:
        raise UserError(
            f"timestep_respacing {respacing!r}: {error}; use for example 'ddim25', '100' or "
            f"'10,15,20', within {total} timesteps"
        ) from error


def _strided(count: int, total: int) -> np.ndarray:
    for stride in range(1, total):
        if len(range(0, total, stride)) == count:
            return np.arange(0, total, stride)
    raise UserError(f"no stride gives {count} steps")


def _in_sections(counts: list[int], total: int) -> np.ndarray:
    size, longer = divmod(total, len(counts))
    kept, start = [], 0
    for section, count in enumerate(counts):
        length = size + (section < longer)
        if not 1 <= count <= length:
            raise UserError(f"{count} steps in a section of {length} timesteps")
        stride = (length - 1) / (count - 1) if count > 1 else 1
        position = 0.0
        for _ in range(count):  # a running sum, as published: its rounding decides ties
            kept.append(start + round(position))
            position += stride
        start += length
    return np.array(sorted(set(kept)))
