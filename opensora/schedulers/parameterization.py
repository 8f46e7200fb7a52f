"""What models predict, and the conversions between it, the sample x_0 and the noise ε, for x = α x_0 + σ ε.

    epsilon        ε                                        Ho et al. 2020
    v_prediction   v = α ε - σ x_0, with α² + σ² = 1        Salimans & Ho 2022, "Progressive Distillation", section 4
    sample         x_0
    flow           v = ε - x_0, with α + σ = 1              Liu et al. 2023, rectified flow

Arrays are numpy arrays or Tensors.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from opensora.schedulers.schedule import Array

FLOW = "flow"


class Levels(NamedTuple):
    """What a model predicts, and α and σ of its input x at each of its calls in a trajectory."""

    prediction: str
    points: tuple[tuple[float, float], ...]

    @classmethod
    def of(cls, prediction: str, points: Iterable[tuple[float, float]]) -> Levels:
        return cls(prediction, tuple((float(alpha), float(sigma)) for alpha, sigma in points))

    def x0(self, output: Array, x: Array, call: int) -> Array:
        """The x_0 that the model's output for x predicts."""
        return x0_of(self.prediction, output, x, *self.points[call])

    def output(self, x0: Array, x: Array, call: int) -> Array:
        """The output for x that predicts x_0."""
        return output_of(self.prediction, x0, x, *self.points[call])

    def moved(self, output: Array, x: Array, call: int, end: int) -> Array:
        """x moved to the level of another call with the predicted x_0 and noise (Song et al. 2020, eq. 12, η = 0)."""
        alpha, sigma = self.points[end]
        noise = noise_of(self.prediction, output, x, *self.points[call])
        return alpha * self.x0(output, x, call) + sigma * noise


def x0_of(prediction: str, output: Array, x: Array, alpha: float, sigma: float) -> Array:
    """The model's estimate of x_0."""
    if prediction == "epsilon":
        return (x - sigma * output) * (1 / alpha)
    if prediction == "v_prediction":
        return alpha * x - sigma * output
    if prediction == FLOW:
        return x - sigma * output
    return output


def noise_of(prediction: str, output: Array, x: Array, alpha: float, sigma: float) -> Array:
    """The model's estimate of ε."""
    if prediction == "epsilon":
        return output
    if prediction == "v_prediction":
        return alpha * output + sigma * x
    if prediction == FLOW:
        return x + alpha * output
    return (x - alpha * output) * (1 / sigma)


def output_of(prediction: str, x0: Array, x: Array, alpha: float, sigma: float) -> Array:
    """The output from which `x0_of` gives x0."""
    if prediction == "epsilon":
        return (x - alpha * x0) * (1 / sigma)
    if prediction == "v_prediction":
        return (alpha * x - x0) * (1 / sigma)
    if prediction == FLOW:
        return (x - x0) * (1 / sigma)
    return x0
