"""Options that save calls of the transformer while sampling. Imports nothing heavy, so that `--help` is fast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Optional

from opensora.config.options import did_you_mean, option
from opensora.errors import UserError
from opensora.utils.numbers import finite_number

CACHE_THRESHOLDS = {"easy": 0.2, "first_block": 0.5}  # method of step caching -> its default threshold
LARGEST_THRESHOLD = 100.0
WHOLE_RANGE = (0.0, 1.0)  # of noise levels


class CacheSettings(NamedTuple):
    """A method of step caching (`opensora.pipelines.step_cache`) and the change up to which it reuses results."""

    method: str
    threshold: float


def parse_cache(value: Optional[str], name: str = "--cache") -> Optional[CacheSettings]:
    """Reads "METHOD" or "METHOD:THRESHOLD"; None for None.

    Raises:
        UserError: an unknown method, or a threshold that is not a number above 0.
    """
    if value is None:
        return None
    method, colon, threshold = str(value).partition(":")
    if method not in CACHE_THRESHOLDS:
        hint = did_you_mean(method, CACHE_THRESHOLDS) or f"; choose {' or '.join(CACHE_THRESHOLDS)}"
        raise UserError(f"{name} {value!r:.100}: {method!r:.100} is not a method of step caching{hint}")
    if not colon:
        return CacheSettings(method, CACHE_THRESHOLDS[method])
    try:
        number = finite_number(threshold, "threshold", 0, LARGEST_THRESHOLD)
    except ValueError as error:
        raise UserError(f"{name} {value!r:.100}: {error}, as in {method}:{CACHE_THRESHOLDS[method]:g}") from error
    if number == 0:
        raise UserError(f"{name} {value!r:.100}: the threshold must be above 0; leave the option out for no caching")
    return CacheSettings(method, number)


def check_guidance_interval(interval: Sequence[float], name: str = "--guidance_interval") -> tuple[float, float]:
    """The interval as a pair.

    Raises:
        UserError: it is not a pair of numbers from 0 to 1 in increasing order.
    """
    try:
        low, high = (finite_number(value, "value", *WHOLE_RANGE) for value in interval)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name} {interval!r:.100}: should be two numbers from 0 to 1, LOW HIGH") from error
    if low > high:
        raise UserError(f"{name} {low:g} {high:g}: LOW is above HIGH")
    return low, high


@dataclass(frozen=True)
class AccelerationOptions:
    """What `--cache` and `--guidance_interval` take.

    Raises:
        UserError: an invalid value.
    """

    group: ClassVar[str] = "sampling"

    cache: Optional[str] = option(
        None,
        "step caching, METHOD or METHOD:THRESHOLD: easy (threshold 0.2) or first_block (0.5) uses the transformer's "
        "last result in steps where it would hardly change; a higher threshold saves more calls; default: every step "
        "calls the transformer",
    )
    guidance_interval: tuple[float, float] = option(
        WHOLE_RANGE,
        "LOW HIGH, from 0 (no noise) to 1 (pure noise): outside these noise levels (timestep / 1000) there is no "
        "guidance and half the work",
    )

    def __post_init__(self) -> None:
        parse_cache(self.cache)
        check_guidance_interval(self.guidance_interval)
