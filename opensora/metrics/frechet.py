"""Fréchet distance of two sets of features, whose mean and covariance are collected one by one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Optional

import numpy as np

from opensora.errors import UserError


class FeatureStatistics:
    """Mean and covariance of feature vectors, in constant memory and in float64 (Welford 1962)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Optional[np.ndarray] = None
        self._products: Optional[np.ndarray] = None  # sum of the outer products of the deviations

    @classmethod
    def of(cls, features: Iterable[np.ndarray]) -> FeatureStatistics:
        """The statistics of features (D,)."""
        statistics = cls()
        for feature in features:
            statistics.add(feature)
        return statistics

    def add(self, feature: np.ndarray) -> None:
        """Adds one feature vector (D,)."""
        feature = np.asarray(feature, np.float64)
        if self.mean is None or self._products is None:
            self.mean, self._products = np.zeros_like(feature), np.zeros((feature.size, feature.size))
        self.count += 1
        deviation = feature - self.mean
        self.mean = self.mean + deviation / self.count
        self._products += np.outer(deviation, feature - self.mean)

    @property
    def covariance(self) -> np.ndarray:
        """(D, D), divided by count - 1; zeros for a single vector."""
        assert self._products is not None
        return self._products / max(1, self.count - 1)


def frechet_distance(real: FeatureStatistics, generated: FeatureStatistics) -> float:
    """Distance of the normal distributions with these statistics (Dowson & Landau 1982, eq. 4).

    |m1 - m2|^2 + Tr(S1 + S2 - 2 (S1 S2)^(1/2)). The trace of the root is that of S1^(1/2) S2 S1^(1/2), which is
    symmetric, so that fewer vectors than channels do no harm.

    Raises:
        UserError: no features.
    """
    if real.mean is None or generated.mean is None:
        raise UserError("the Fréchet distance needs features of real and of generated videos")
    first, second = real.covariance, generated.covariance
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    product = root @ second @ root
    eigenvalues = np.linalg.eigvalsh((product + product.T) / 2)
    trace = np.trace(first) + np.trace(second) - 2 * np.sqrt(np.maximum(eigenvalues, 0)).sum()
    distance = float(np.square(real.mean - generated.mean).sum() + trace)
    return max(distance, 0.0)  # rounding may make that of equal sets negative
