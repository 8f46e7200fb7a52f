"""A tiny text-to-video sample and three training steps, against numbers that were stored in float32 on a CPU."""

from __future__ import annotations

import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, Callable

import numpy as np
from mindspore import Tensor

from opensora.config.device import PRECISIONS
from opensora.device import PRECISIONS as DTYPES
from opensora.device import Device
from opensora.doctor.checks import FAILED, OK, SKIPPED, Result, Rows, Settings
from opensora.doctor.place import set_up, supports
from opensora.doctor.tiny_release import DIT, make_release, with_weights
from opensora.models import OpenSoraT2V_v1_3
from opensora.pipelines import OpenSoraPipeline
from opensora.train.objective import DenoisingLoss, make_objective
from opensora.train.optimizer import Optimizer
from opensora.train.t2v_options import ObjectiveOptions

EXPECTED = Path(__file__).with_name("expected.json")
# Largest error relative to the largest number. Rounding adds up over the layers of all models and over the steps.
TOLERANCES = {"fp32": 1e-3, "fp16": 2e-2, "bf16": 1e-1}
SHOWN = 64  # numbers of an array that are stored, evenly spaced
STEPS, LEARNING_RATE = 3, 1e-3


def sample_rows(settings: Settings) -> Rows:
    return _rows(settings, sample)


def training_rows(settings: Settings) -> Rows:
    return _rows(settings, training)


def _rows(settings: Settings, run: Callable[[str], dict[str, np.ndarray]]) -> Rows:
    device = set_up(settings.device)
    return {precision: partial(check, run, precision, device) for precision in PRECISIONS[::-1]}


def check(run: Callable[[str], dict[str, np.ndarray]], precision: str, device: Device) -> Result:
    """Runs `sample` or `training` in a precision and compares all of its numbers."""
    if not supports(device.target, precision):
        return Result(SKIPPED, f"models do not run in {precision} on a {device.target}")
    expected = json.loads(EXPECTED.read_text())[run.__name__]
    errors = {name: relative_error(found, np.array(expected[name])) for name, found in run(precision).items()}
    worst = max(errors, key=lambda name: errors[name])
    tolerance = TOLERANCES[precision]
    shown = ", ".join(f"{name} {error:.0e}" for name, error in errors.items())
    numbers = {"errors": errors, "tolerance": tolerance}
    if errors[worst] <= tolerance:
        return Result(OK, f"errors: {shown}", numbers=numbers)
    remedy = "look for a failed primitive above; if there is none, report this with the JSON of this command"
    return Result(FAILED, f"errors: {shown}; tolerance {tolerance:.0e}", remedy, numbers)


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference relative to the largest expected number; infinite for NaN and for other shapes."""
    if found.shape != expected.shape or not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def sample(precision: str) -> dict[str, np.ndarray]:
    """Latents and frames of a video of 5x32x64 after two steps with guidance, from files in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="opensora-doctor-") as name:
        folder = Path(name)
        make_release(folder)
        pipeline = OpenSoraPipeline.from_pretrained(
            folder / "transformer", folder / "vae", folder / "text", dtype=DTYPES[precision]
        )
        text = pipeline.embed_prompt("a boat", guidance_scale=3.0, max_sequence_length=64)
        latents = pipeline.denoise(text, 5, 32, 64, num_inference_steps=2, guidance_scale=3.0, seed=0, progress=False)
        frames = pipeline.output(latents, "video")
    return {"text": _chosen(text.states), "latents": _chosen(latents.asnumpy()), "frames": _chosen(frames)}


def training(precision: str) -> dict[str, np.ndarray]:
    """Losses and gradient norms of three steps of AdamW on one batch, and the weights after them."""
    model = with_weights(OpenSoraT2V_v1_3(**DIT)).cast(DTYPES[precision])
    loss, optimizer = DenoisingLoss(model.set_train()), Optimizer(model)
    random = np.random.default_rng(0)
    objective = make_objective(ObjectiveOptions())
    latents, noise = random.standard_normal((2, 2, 8, 2, 8, 8))
    text = random.standard_normal((2, 1, 7, DIT["caption_channels"]))
    mask = np.array([[[1] * 7], [[1] * 4 + [0] * 3]], np.int32)
    inputs: list[Any] = [
        _tensor(latents),
        _tensor(noise),
        *map(Tensor, objective.coefficients(np.array([200, 700]))),
        _tensor(text).astype(model.dtype),
        Tensor(mask),
    ]
    losses, norms = [], []
    for _ in range(STEPS):
        losses.append(float(optimizer.backward(loss, *inputs).asnumpy()))
        step = optimizer.step(LEARNING_RATE)
        norms.append(step.norm)
    weights = np.concatenate([tensor.numpy().ravel() for _, tensor in sorted(optimizer.weights().items())])
    return {"losses": np.array(losses), "norms": np.array(norms), "weights": _chosen(weights)}


def _tensor(value: np.ndarray) -> Tensor:
    return Tensor(value.astype(np.float32))


def _chosen(values: np.ndarray) -> np.ndarray:
    """Evenly spaced elements."""
    return values.reshape(-1)[:: max(1, values.size // SHOWN)][:SHOWN].astype(np.float64)


def store() -> None:
    """Computes and writes the stored numbers: python -m opensora.doctor.end_to_end"""
    set_up("CPU")
    numbers = {
        run.__name__: {name: [float(f"{x:.7g}") for x in values] for name, values in run("fp32").items()}
        for run in (sample, training)
    }
    EXPECTED.write_text(json.dumps(numbers, indent=1).replace(",\n   ", ",").replace("[\n   ", "[") + "\n")


if __name__ == "__main__":
    store()
