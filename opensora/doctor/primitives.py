"""Every primitive of `opensora.ops`, forward and backward, against numpy in float64.

The reference gets the inputs rounded to the dtype of the case. Gradients are compared along directions: the sum of
gradient times direction must be the central difference of the float64 reference. The directions of an input have
disjoint supports, so that an error in few elements is not hidden by the others.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from functools import partial
from statistics import median
from typing import Any, Callable
from zlib import crc32

import mindspore as ms
import numpy as np
from mindspore import Tensor

from opensora.device import PRECISIONS
from opensora.doctor.checks import FAILED, OK, SKIPPED, Result, Rows, Settings
from opensora.doctor.layer_cases import layer_cases
from opensora.doctor.place import set_up, supports
from opensora.doctor.primitive_cases import Case
from opensora.doctor.tensor_cases import tensor_cases
from opensora.ops.backend import COMPOSED_VARIABLE, uses_fused
from opensora.ops.cpu.build import SWITCH
from opensora.ops.cpu.custom_op import available

# Largest error relative to the largest value. The unit roundoffs are 6e-8, 4.9e-4 and 3.9e-3; a primitive that rounds
# a few intermediate results stays below, a wrong one does not.
TOLERANCES = {"fp32": 1e-4, "fp16": 4e-3, "bf16": 2e-2}
BACKWARD = 2  # gradients round more often: factor of their tolerances
DIRECTIONS = 8  # of each input
STEP = 1e-5  # of the central difference
CALLS = 3  # that are timed, after the first


def rows_fp32(settings: Settings) -> Rows:
    return rows(settings, "fp32")


def rows_fp16(settings: Settings) -> Rows:
    return rows(settings, "fp16")


def rows_bf16(settings: Settings) -> Rows:
    return rows(settings, "bf16")


def rows(settings: Settings, precision: str) -> Rows:
    target = set_up(settings.device).target
    if not supports(target, precision):
        return {"all": lambda: Result(SKIPPED, f"models do not run in {precision} on a {target}")}
    set_up(settings.device, precision=precision)
    return rows_of([*layer_cases(), *tensor_cases()], precision)


def rows_of(chosen: Iterable[Case], precision: str) -> Rows:
    """Two rows for each case, "name forward" and "name backward"."""
    found: dict[str, Callable[[], Result]] = {}
    for case in chosen:
        if not (case.single and precision != "fp32"):
            found[f"{case.name} forward"] = partial(check_forward, case, precision)
            if case.backward:
                found[f"{case.name} backward"] = partial(check_backward, case, precision)
    return found


def check_forward(case: Case, precision: str) -> Result:
    """Compares the output with the reference."""
    dtype = PRECISIONS[precision]
    fresh = iter([make_inputs(case, dtype)[0] for _ in range(1 + CALLS)])  # optimizer steps change their inputs
    outputs, milliseconds = _timed(lambda: _as_list(case.run(*next(fresh))))
    expected = _as_list(case.reference(*make_inputs(case, dtype)[1]))
    wanted = dtype if case.keeps_dtype else ms.float32
    others = sorted({str(output.dtype) for output in outputs if case.keeps_dtype and output.dtype != wanted})
    if others:
        return Result(FAILED, f"the output is {', '.join(others)}, not {wanted}", _remedy(case, precision))
    errors = [_relative_error(_numpy(output), value) for output, value in zip(outputs, expected)]
    return _judged(case, precision, max(errors), TOLERANCES[precision], milliseconds)


def check_backward(case: Case, precision: str) -> Result:
    """Compares the gradients of the sum of random weights times outputs with central differences of the reference."""
    dtype = PRECISIONS[precision]
    tensors, arrays = make_inputs(case, dtype)
    random = np.random.default_rng(crc32(f"{case.name} backward".encode()))
    weights = [_rounded(random.standard_normal(value.shape), dtype) for value in _as_list(case.reference(*arrays))]
    weight_tensors = [Tensor(value.astype(np.float32)) for value in weights]

    def loss(*inputs: Tensor) -> Tensor:
        outputs = _as_list(case.run(*inputs))
        terms = [(output.astype(ms.float32) * weight).sum() for output, weight in zip(outputs, weight_tensors)]
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return total

    def exact_loss(*inputs: np.ndarray) -> float:
        return sum(float((output * weight).sum()) for output, weight in zip(_as_list(case.reference(*inputs)), weights))

    positions = tuple(i for i, given in enumerate(case.inputs) if given.differentiable)
    gradient = ms.grad(loss, positions)
    gradients, milliseconds = _timed(lambda: _as_list(gradient(*tensors)))
    errors = {}
    for position, tensor in zip(positions, gradients):
        if tensor.shape != tensors[position].shape:
            return Result(
                FAILED, f"the gradient of input {position} has the shape {tensor.shape}", _remedy(case, precision)
            )
        errors[position] = _gradient_error(_numpy(tensor), exact_loss, arrays, position, random)
    worst = max(errors, key=lambda position: errors[position])
    tolerance = BACKWARD * TOLERANCES[precision]
    return _judged(case, precision, errors[worst], tolerance, milliseconds, f" of the gradient of input {worst}")


def _gradient_error(
    gradient: np.ndarray, loss: Callable, arrays: Sequence[np.ndarray], position: int, random: np.random.Generator
) -> float:
    """The largest difference of a directional derivative, relative to the largest sum of squares along a direction."""
    differences, scales = [], []
    part = np.arange(gradient.size).reshape(gradient.shape) % DIRECTIONS
    for number in range(min(DIRECTIONS, gradient.size)):
        direction = random.standard_normal(gradient.shape) * (part == number)
        ends = [
            loss(*arrays[:position], arrays[position] + sign * STEP * direction, *arrays[position + 1 :])
            for sign in (1, -1)
        ]
        expected = (ends[0] - ends[1]) / (2 * STEP)
        differences.append(abs(float((gradient * direction).sum()) - expected))
        scales.append(max(float(np.linalg.norm(gradient * direction)), abs(expected)))
    return _ratio(np.array(differences), max(scales))


def make_inputs(case: Case, dtype) -> tuple[list[Tensor], list[np.ndarray]]:
    """The inputs as tensors, and as float64 arrays of the same values."""
    random = np.random.default_rng(crc32(case.name.encode()))
    tensors = []
    for given in case.inputs:
        value = random.standard_normal(given.shape) * given.scale if given.value is None else given.value
        tensors.append(Tensor(value.astype(np.float32)).astype(ms.float32 if given.single else dtype))
    return tensors, [_numpy(tensor) for tensor in tensors]


def _timed(run: Callable[[], list[Tensor]]) -> tuple[list[Tensor], float]:
    """The result of the first call, and the median time of the next ones in milliseconds."""
    result = run()
    seconds = []
    for _ in range(CALLS):
        started = time.perf_counter()
        for output in run():
            _numpy(output)  # waits for the device
        seconds.append(time.perf_counter() - started)
    return result, 1000 * median(seconds)


def _judged(case: Case, precision: str, error: float, tolerance: float, milliseconds: float, where: str = "") -> Result:
    shapes = [list(given.shape) for given in case.inputs]
    numbers = {"error": error, "tolerance": tolerance, "milliseconds": milliseconds, "shapes": shapes}
    if error <= tolerance:
        return Result(OK, f"error {error:.0e}, {milliseconds:.1f} ms", numbers=numbers)
    return Result(FAILED, f"error {error:.1e}{where}, tolerance {tolerance:.0e}", _remedy(case, precision), numbers)


def _remedy(case: Case, precision: str) -> str:
    if case.fused and uses_fused(case.fused):
        return (
            f"export {COMPOSED_VARIABLE}={case.fused} composes it of elementary operators; separate several by commas"
        )
    if available(PRECISIONS[precision]):
        return f"export {SWITCH}=0 uses MindSpore's operators instead of the C++ kernels; report both results"
    return "report it with the JSON of this command (--json FILE)"


def _relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    if found.shape != expected.shape:
        raise ValueError(f"the output has the shape {found.shape}, not {expected.shape}")
    return _ratio(np.abs(found - expected), float(np.abs(expected).max()))


def _ratio(differences: np.ndarray, scale: float) -> float:
    """The largest difference over the scale; infinite for NaN."""
    largest = float(differences.max()) if differences.size else 0.0
    return float("inf") if not np.isfinite(largest) else largest / scale if scale else largest


def _rounded(value: np.ndarray, dtype) -> np.ndarray:
    return _numpy(Tensor(value.astype(np.float32)).astype(dtype))


def _numpy(tensor: Tensor) -> np.ndarray:
    tensor = tensor.astype(ms.float32) if tensor.dtype == ms.bfloat16 else tensor
    return tensor.asnumpy().astype(np.float64)


def _as_list(value: Any) -> list:
    return list(value) if isinstance(value, (tuple, list)) else [value]
