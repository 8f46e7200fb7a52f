"""Which timesteps a run visits, and the numbers of the diffusion that visits only those.

Notation: x_t = sqrt(ᾱ_t) x_0 + sqrt(1 - ᾱ_t) ε (Ho et al. 2020, eq. 4).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from opensora.config.options import check_choice
from opensora.errors import UserError
from opensora.schedulers.noise_schedule import TRAIN_TIMESTEPS

NOISE_SCHEDULES = ("linear", "squaredcos_cap_v2")


class Tables(NamedTuple):
    """Of the N timesteps kept, each (N,): `timestep_map` says which they are of the original ones; the rest is float32,
    computed as the published code does it, for at the first timestep 1 - ᾱ has few digits."""

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
        UserError: an unknown schedule, or a respacing that is impossible.
    """
    one = np.float32(1)
    kept = kept_timesteps(respacing, total)
    alphas_cumprod = np.cumprod(1 - training_betas(noise_schedule, total))[kept]
    betas = (1 - alphas_cumprod / np.append(1.0, alphas_cumprod[:-1])).astype(np.float32)
    alphas_cumprod = np.cumprod(one - betas, dtype=np.float64).astype(np.float32)
    previous = np.append(one, alphas_cumprod[:-1])
    variance = betas * (one - previous) / (one - alphas_cumprod)
    # The first is 0; the second stands in for it where its logarithm is wanted.
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
    """Variances of the training timesteps, (total,) float64: those of Ho et al. 2020 scaled to their number, or the
    cosine schedule of Nichol & Dhariwal 2021, eq. 17."""
    if noise_schedule not in NOISE_SCHEDULES:
        check_choice("noise_schedule", noise_schedule, NOISE_SCHEDULES)
    if noise_schedule == "linear":
        scale = TRAIN_TIMESTEPS / total
        return np.linspace(scale * 1e-4, scale * 0.02, total)
    alphas_cumprod = np.cos((np.arange(total + 1) / total + 0.008) / 1.008 * math.pi / 2) ** 2
    return np.minimum(1 - alphas_cumprod[1:] / alphas_cumprod[:-1], 0.999)


def kept_timesteps(respacing: str, total: int) -> np.ndarray:
    """Which of `total` timesteps are kept, rising.

    respacing: "" keeps all; "ddim25" every so manieth, so that there are 25 (Song et al. 2020); "10,15,20" that many of
    each third, evenly from its first to its last.
    """
    if not respacing:
        return np.arange(total)
    try:
        if respacing.startswith("ddim"):
            return _strided(int(respacing[len("ddim") :]), total)
        return _of_sections([int(count) for count in respacing.split(",")], total)
    except ValueError as error:
        raise UserError(
            f"timestep_respacing {respacing!r}: {error}; should be such as 'ddim25', '100' or "
            f"'10,15,20', within {total} timesteps"
        ) from error


def _strided(count: int, total: int) -> np.ndarray:
    for stride in range(1, total):
        if len(range(0, total, stride)) == count:
            return np.arange(0, total, stride)
    raise UserError(f"no stride gives {count} steps")


def _of_sections(counts: list, total: int) -> np.ndarray:
    size, longer = divmod(total, len(counts))
    kept, start = [], 0
    for section, count in enumerate(counts):
        length = size + (section < longer)
        if not 1 <= count <= length:
            raise UserError(f"{count} of a section's {length} timesteps")
        stride = (length - 1) / (count - 1) if count > 1 else 1
        place = 0.0
        for _ in range(count):  # a running sum, as published: its rounding decides ties
            kept.append(start + round(place))
            place += stride
        start += length
    return np.array(sorted(set(kept)))
