"""The timesteps of `set_timesteps(timesteps=[...])`, which the caller chooses."""

from __future__ import annotations

import numpy as np
import pytest
from golden_cases import given, relative_difference
from golden_schedulers import END_WITH_NOISE, NO_RESCALE, SHAPE, ZERO_SNR, levels, perfect_prediction

from opensora.errors import UserError
from opensora.schedulers import SCHEDULERS, get_scheduler
from opensora.schedulers.iddpm.sampler import UniformTimeSolver

TAKE_TIMESTEPS = [name for name in SCHEDULERS if SCHEDULERS[name].takes_timesteps]


def sample(scheduler, name: str) -> np.ndarray:
    """The end of a trajectory with predictions that depend on input and timestep."""
    x = given(name, "x", SHAPE) * np.float32(scheduler.init_noise_sigma)
    for t in scheduler.timesteps:
        prediction = np.tanh(scheduler.scale_model_input(x, t)) * np.float32(np.cos(t / 300))
        x = scheduler.step(prediction, t, x, noise=lambda k: given(name, f"noise{k}", SHAPE))
    return x


def steps_of(scheduler) -> np.ndarray:
    """The timesteps of the steps, without those of second calls."""
    return np.unique(scheduler.timesteps)[::-1]


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("name", TAKE_TIMESTEPS)
def test_own_timesteps_given_as_a_list_make_the_same_trajectory(name, spacing):
    if SCHEDULERS[name].whole_timesteps and spacing == "linspace":
        pytest.skip("the published stride of linspace does not end at the next timestep")
    options = {**ZERO_SNR, "rescale_betas_zero_snr": name not in NO_RESCALE, "timestep_spacing": spacing}
    own, given_list = get_scheduler(name, **options), get_scheduler(name, **options)
    own.set_timesteps(10)
    given_list.set_timesteps(timesteps=steps_of(own).tolist())
    assert np.array_equal(own.timesteps, given_list.timesteps)
    assert np.array_equal(sample(own, name), sample(given_list, name))
    given_list.set_timesteps(10)
    assert np.array_equal(sample(own, name), sample(given_list, name))


def test_own_timesteps_of_the_solver_of_open_sora_make_the_same_trajectory():
    own, given_list = UniformTimeSolver(), UniformTimeSolver()
    own.set_timesteps(7)
    given_list.set_timesteps(timesteps=own.timesteps)
    assert np.array_equal(sample(own, "DPM"), sample(given_list, "DPM"))


@pytest.mark.parametrize("name", TAKE_TIMESTEPS)
def test_perfect_predictions_recover_the_sample_over_uneven_steps(name):
    scheduler = get_scheduler(name, prediction_type="v_prediction", seed=0)
    scheduler.set_timesteps(timesteps=[999, 700, 650, 200, 30, 1])
    assert len(steps_of(scheduler)) == 6 and len(scheduler.timesteps) == 6 * scheduler.order - (scheduler.order - 1)
    x0, noise = given(name, "x0", SHAPE), given(name, "noise", SHAPE)
    x = scheduler.add_noise(x0, noise, 999)
    for t in scheduler.timesteps:
        model_input = scheduler.scale_model_input(x, t)
        x = scheduler.step(perfect_prediction(scheduler, model_input, x0, t), t, x)
    alpha, sigma = levels(scheduler, 0)
    expected = alpha * x0 + sigma * noise if name in END_WITH_NOISE else x0
    assert relative_difference(x, expected) < 3e-5


def test_uneven_ddim_steps_match_eq_12():
    """With the prediction ε = x, eq. 12 multiplies x by a factor of each step."""
    scheduler = get_scheduler("DDIM")
    steps = [900, 850, 400, 30]
    scheduler.set_timesteps(timesteps=steps)
    x, expected = np.ones((1, 1), np.float32), 1.0
    alpha = {t: scheduler.alphas_cumprod[t] ** 0.5 for t in steps} | {None: 1.0}
    for t, next_t in zip(steps, [*steps[1:], None]):
        sigma, next_sigma = (1 - alpha[t] ** 2) ** 0.5, (1 - alpha[next_t] ** 2) ** 0.5
        expected *= alpha[next_t] * (1 - sigma) / alpha[t] + next_sigma
        x = scheduler.step(x, t, x)
    assert x.item() == pytest.approx(expected, rel=1e-5)


def test_uneven_euler_steps_match_a_linear_equation():
    """With ε = y / s, Euler's method on dy/dσ = y / s multiplies y by 1 + (σ' - σ) / s."""
    scheduler = get_scheduler("EulerDiscrete")
    steps = [900.5, 850, 400.25, 30]
    scheduler.set_timesteps(timesteps=steps)
    table = np.sqrt(1 / scheduler.alphas_cumprod - 1)
    sigmas = [*np.interp(steps, np.arange(1000), table), 0]
    y = np.ones((1, 1), np.float32)
    for t in steps:
        y = scheduler.step(y / 50, t, y)
    factors = [1 + (next_sigma - sigma) / 50 for sigma, next_sigma in zip(sigmas, sigmas[1:])]
    assert y.item() == pytest.approx(np.prod(factors), rel=1e-5)


@pytest.mark.parametrize(
    "name, timesteps, message",
    [
        ("PNDM", [900, 500], "PNDM takes a number of steps, but no timesteps: it needs evenly spaced ones"),
        ("DDIM", [], "timesteps should be a list of 1 to 1000 numbers"),
        ("DDIM", [[900]], "timesteps should be a list of 1 to 1000 numbers"),
        ("DDIM", 5, "timesteps should be a list of 1 to 1000 numbers"),
        ("DDIM", ["a"], "timesteps should be numbers"),
        ("DDIM", [1000, 5], "timestep 1000: DDIM takes a whole number from 0 to 999"),
        ("DDIM", [900, -1], "timestep -1: DDIM takes a whole number from 0 to 999"),
        ("DDIM", [900, 0.5], "timestep 0.5: DDIM takes a whole number from 0 to 999"),
        ("EulerDiscrete", [float("nan")], "timestep nan: EulerDiscrete takes a number from 0 to 999"),
        ("EulerDiscrete", [float("inf"), 3], "timestep inf: EulerDiscrete takes a number from 0 to 999"),
        ("DEISMultistep", [900, 0], "timestep 0: DEISMultistep takes a number from 1 to 999"),
        ("FlowMatchEulerDiscrete", [1001], "timestep 1001: FlowMatchEulerDiscrete takes a number from 1 to 1000"),
        ("EulerDiscrete", [900, 901], "timesteps should decrease from step to step: 901 follows 900"),
        ("EulerDiscrete", [900, 900 - 1e-6], "timesteps should decrease from step to step: 900 follows 900"),
        ("HeunDiscrete", [900, 500, 500], "timesteps should decrease from step to step: 500 follows 500"),
    ],
)
def test_unusable_timesteps_are_rejected(name, timesteps, message):
    scheduler = get_scheduler(name)
    with pytest.raises(UserError) as error:
        scheduler.set_timesteps(timesteps=timesteps)
    assert str(error.value).startswith(message)


def test_number_and_timesteps_exclude_each_other():
    for arguments in ({}, {"num_inference_steps": 2, "timesteps": [900, 500]}):
        with pytest.raises(UserError, match="either a number of steps or the timesteps"):
            get_scheduler("DDIM").set_timesteps(**arguments)
