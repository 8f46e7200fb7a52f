"""The golden cases of the samplers, and the output of a model that knows the sample."""

from __future__ import annotations

import numpy as np
from golden_cases import case, case_names, given, load_case, relative_difference

from opensora.schedulers import get_scheduler

GOLDEN = case_names("sched_")
SHAPE = (1, 4, 3, 4, 4)
# Their published forms end at timestep 0, where some noise remains.
END_WITH_NOISE = ("PNDM", "DEISMultistep")
NO_RESCALE = ("PNDM", "DEISMultistep", "HeunDiscrete", "KDPM2AncestralDiscrete", "DPMSolverSinglestep")
ZERO_SNR = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}


def run_golden(name: str, kind) -> tuple:
    """The scheduler of a case after sampling, all states of the trajectory, and the indices of its noise draws."""
    description = case(name)
    scheduler = get_scheduler(description["scheduler"], **description["kwargs"])
    scheduler.set_timesteps(description["num_steps"])
    target, draws = given(name, "target", SHAPE), []

    def noise(k):
        draws.append(k)
        return kind(given(name, f"noise{k}", SHAPE))

    x = kind(given(name, "x", SHAPE)) * scheduler.init_noise_sigma
    states = [x]
    for t in scheduler.timesteps:
        model_input = as_numpy(scheduler.scale_model_input(x, t))
        prediction = (0.7 * np.tanh(model_input) + 0.3 * target * np.cos(t / 300)).astype(np.float32)
        x = scheduler.step(kind(prediction), t, x, noise=noise)
        states.append(x)
    return scheduler, states, draws


def largest_difference(states: list, expected: np.ndarray) -> float:
    """Over the states of a trajectory, each relative to its own scale: the first may be thousands of times the last."""
    assert len(states) == len(expected)
    return max(relative_difference(as_numpy(state), reference) for state, reference in zip(states, expected))


def golden_rows() -> list:
    """(case, largest relative difference) of each golden case."""
    return [
        (name, largest_difference(run_golden(name, np.asarray)[1], load_case(name)["trajectory"])) for name in GOLDEN
    ]


def as_numpy(x) -> np.ndarray:
    return x if isinstance(x, np.ndarray) else x.asnumpy()


def levels(scheduler, t: float) -> tuple:
    """α and σ of the model's input at timestep t."""
    if not hasattr(scheduler, "alphas_cumprod"):
        return 1 - t / 1000, t / 1000
    alpha_cumprod = scheduler.alphas_cumprod[int(t)]
    return alpha_cumprod**0.5, (1 - alpha_cumprod) ** 0.5


def perfect_prediction(scheduler, model_input: np.ndarray, x0: np.ndarray, t: float) -> np.ndarray:
    """The output of a model that knows x0."""
    alpha, sigma = levels(scheduler, t)
    noise = (model_input - alpha * x0) / sigma
    if not hasattr(scheduler, "alphas_cumprod"):
        return noise - x0
    return {"epsilon": noise, "sample": x0, "v_prediction": alpha * noise - sigma * x0}[scheduler.options.prediction]
