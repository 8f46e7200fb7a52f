"""The samplers against golden trajectories, and properties that hold for each of them."""

from __future__ import annotations

import warnings

import mindspore as ms
import numpy as np
import pytest
from golden_cases import case, given, load_case, relative_difference
from golden_schedulers import (
    END_WITH_NOISE,
    GOLDEN,
    NO_RESCALE,
    SHAPE,
    ZERO_SNR,
    largest_difference,
    levels,
    perfect_prediction,
    run_golden,
)
from mindspore import Tensor

from opensora.schedulers import PREDICTION_TYPES, SCHEDULERS, get_scheduler
from opensora.schedulers.schedule import spaced_timesteps

KINDS = {"numpy": np.asarray, "tensor": Tensor}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", GOLDEN)
def test_trajectory_matches_golden(name, kind):
    scheduler, states, draws = run_golden(name, KINDS[kind])
    expected = load_case(name)
    assert largest_difference(states, expected["trajectory"]) < 1e-4
    assert draws == list(range(case(name)["noise_draws"]))
    np.testing.assert_allclose(scheduler.timesteps, expected["timesteps"], rtol=1e-6, atol=1e-4)
    np.testing.assert_allclose(scheduler.init_noise_sigma, expected["init_noise_sigma"][0], rtol=1e-6)
    if "alphas_cumprod" in expected:
        np.testing.assert_allclose(scheduler.alphas_cumprod, expected["alphas_cumprod"], rtol=1e-4)
    if "sigmas" in expected:  # the reference repeats the sigmas of the samplers with two calls per step
        np.testing.assert_allclose(scheduler.sigmas[::-1], np.unique(expected["sigmas"]), rtol=1e-4)
    assert all(type(state) is type(states[0]) for state in states)
    assert {str(state.dtype).lower() for state in states} == {"float32"}


def test_golden_cases_cover_every_sampler():
    assert {case(name)["scheduler"] for name in GOLDEN} == set(SCHEDULERS)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_perfect_predictions_recover_the_sample(name, prediction_type):
    scheduler = get_scheduler(name, prediction_type=prediction_type, seed=0)
    scheduler.set_timesteps(20)
    x0, noise = given(name, "x0", SHAPE), given(name, "noise", SHAPE)
    t = scheduler.timesteps[0]
    x = scheduler.add_noise(x0, noise, t if name == "FlowMatchEulerDiscrete" else int(t))
    for t in scheduler.timesteps:
        model_input = scheduler.scale_model_input(x, t)
        x = scheduler.step(perfect_prediction(scheduler, model_input, x0, t), t, x)
    expected = x0
    if name in END_WITH_NOISE:
        alpha, sigma = levels(scheduler, 0)
        expected = alpha * x0 + sigma * noise
    # PNDM combines velocities of different timesteps without conversion, which is exact only for constant ones.
    tolerance = 3e-2 if (name, prediction_type) == ("PNDM", "v_prediction") else 3e-5
    assert relative_difference(x, expected) < tolerance


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 61, 999])
def test_any_number_of_steps_is_finite(name, steps):
    scheduler = get_scheduler(name, prediction_type="v_prediction", timestep_spacing="trailing", seed=0)
    scheduler.set_timesteps(steps)
    x = np.ones((1, 2), np.float32) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        x = scheduler.step(np.zeros_like(x), t, x)
    assert np.isfinite(x).all()
    visited = len(np.unique(scheduler.timesteps))
    half_steps = min(3, steps - 1) if name == "PNDM" and steps < 500 else 0  # timesteps between those of the steps
    assert visited == steps + half_steps
    assert 0 <= scheduler.timesteps.min() and scheduler.timesteps.max() <= 1000


def test_spaced_timesteps_match_lin_et_al_table_2():
    assert list(spaced_timesteps("leading", 10)) == list(range(900, -1, -100))
    assert list(spaced_timesteps("trailing", 10)) == list(range(999, 0, -100))
    assert list(spaced_timesteps("linspace", 10).round()) == list(range(999, -1, -111))
    for count in range(1, 1001):
        timesteps = spaced_timesteps("trailing", count)
        assert len(timesteps) == count and timesteps[0] == 999 and timesteps[-1] >= 0
        assert (np.diff(timesteps) < 0).all()


@pytest.mark.parametrize("name", SCHEDULERS)
def test_noise_and_velocity_recover_the_sample(name):
    """The model's input is α x0 + σ noise, and α input - σ velocity is x0, with one timestep per sample."""
    scheduler = get_scheduler(name, prediction_type="v_prediction", timestep_spacing="trailing")
    scheduler.set_timesteps(4)
    x0, noise = given(name, "x0", (4, 2, 3)), given(name, "noise", (4, 2, 3))
    t = np.unique(scheduler.timesteps)[::-1][:4].astype(np.int64)
    noisy, velocity = scheduler.add_noise(x0, noise, t), scheduler.get_velocity(x0, noise, t)
    for i, own_t in enumerate(t):
        alpha, sigma = levels(scheduler, own_t)
        one = slice(i, i + 1)
        assert np.array_equal(scheduler.add_noise(x0[one], noise[one], int(own_t)), noisy[one])
        if name in ("FlowMatchEulerDiscrete", "PNDM"):
            model_input = noisy[one]
        else:
            model_input = scheduler.scale_model_input(noisy[one], scheduler.timesteps[scheduler.timesteps == own_t][0])
        np.testing.assert_allclose(model_input, alpha * x0[one] + sigma * noise[one], rtol=1e-5, atol=1e-5)
        if name == "FlowMatchEulerDiscrete":
            np.testing.assert_allclose(model_input - sigma * velocity[one], x0[one], atol=1e-5)
        else:
            np.testing.assert_allclose(alpha * model_input - sigma * velocity[one], x0[one], atol=1e-5)


@pytest.mark.parametrize("name", ["DDPM", "EulerDiscrete", "FlowMatchEulerDiscrete"])
def test_tensors_match_numpy_arrays(name):
    scheduler = get_scheduler(name, **ZERO_SNR)
    x0, noise, t = given(name, "x0", (3, 2, 4)), given(name, "noise", (3, 2, 4)), np.array([0, 500, 999])
    for method in (scheduler.add_noise, scheduler.get_velocity):
        expected = method(x0, noise, t)
        for timesteps in (t, Tensor(t)):
            result = method(Tensor(x0), Tensor(noise), timesteps)
            assert result.dtype == ms.float32
            np.testing.assert_allclose(result.asnumpy(), expected, rtol=1e-6)
        half = method(Tensor(x0, ms.float16), Tensor(noise, ms.float16), Tensor(t))
        assert half.dtype == ms.float32
        expected = method(x0.astype(np.float16), noise.astype(np.float16), t)
        assert expected.dtype == np.float32
        np.testing.assert_allclose(half.asnumpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["DDPM", "CogVideoX"])
def test_zero_snr_last_timestep_is_pure_noise(name):
    noise = given(name, "noise", SHAPE)
    scheduler = get_scheduler(name, **ZERO_SNR)
    assert np.array_equal(scheduler.add_noise(np.full(SHAPE, 5.0), noise, 999), noise)
    assert scheduler.options.spacing == "trailing"
    plain = get_scheduler(name)
    assert plain.options.spacing == "leading" and plain.alphas_cumprod[-1] > 0
    assert plain.alphas_cumprod[0] == pytest.approx(scheduler.alphas_cumprod[0])


@pytest.mark.parametrize("name", SCHEDULERS)
def test_consecutive_trajectories_are_equal(name):
    """A trajectory does not depend on the previous one, finished or not."""

    def run(scheduler, calls=None):
        draws = []
        x = given(name, "x", SHAPE) * np.float32(scheduler.init_noise_sigma)
        for t in scheduler.timesteps[:calls]:
            x = scheduler.step(np.tanh(x), t, x, noise=lambda k: draws.append(k) or given(name, f"noise{k}", SHAPE))
        return x, draws

    scheduler = get_scheduler(name)
    scheduler.set_timesteps(6)
    first, draws = run(scheduler)
    run(scheduler, calls=5)
    again, draws_again = run(scheduler)
    assert np.array_equal(first, again) and draws == draws_again
    run(scheduler, calls=5)
    scheduler.set_timesteps(6)
    assert np.array_equal(first, run(scheduler)[0])


def test_unexpected_timestep_starts_a_step():
    """Timesteps of HeunDiscrete end one step and start another; a trajectory may also start there."""
    scheduler = get_scheduler("HeunDiscrete")
    scheduler.set_timesteps(10)
    x, slope = given("heun", "x", SHAPE), given("heun", "slope", SHAPE)
    assert scheduler.timesteps[3] == scheduler.timesteps[4]
    change = np.float32(scheduler.sigmas[3] - scheduler.sigmas[2])
    np.testing.assert_allclose(scheduler.step(slope, scheduler.timesteps[3], x), x + change * slope, rtol=1e-5)


def test_sampled_noise_follows_the_seed():
    def sample(seed):
        scheduler = get_scheduler("EulerAncestralDiscrete", seed=seed)
        scheduler.set_timesteps(3)
        x = np.zeros((1, 2, 500), np.float32)
        return scheduler.step(x, scheduler.timesteps[0], x)

    noise = sample(0)
    assert np.array_equal(noise, sample(0)) and not np.array_equal(noise, sample(1))
    scale = noise.std()
    assert abs(noise.mean()) < 0.1 * scale and not np.array_equal(noise[:, 0], noise[:, 1])


@pytest.mark.parametrize("name", ["DDIM", "DDPM"])
def test_clip_sample_limits_the_predicted_sample(name):
    scheduler = get_scheduler(name, prediction_type="sample", clip_sample=True)
    scheduler.set_timesteps(1)
    far = np.array([[-3.0, 0.5, 3.0]], np.float32)
    np.testing.assert_allclose(scheduler.step(far, scheduler.timesteps[0], far), [[-1, 0.5, 1]], atol=1e-2)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_sampler_accepts_the_common_options(name):
    options = dict(
        ZERO_SNR, timestep_spacing="trailing", beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        scheduler = get_scheduler(name, **options)
    warning = f"{name} ignores rescale_betas_zero_snr: its published form has no rescale to zero SNR"
    assert [str(w.message) for w in caught] == ([warning] if name in NO_RESCALE else [])
    if name in NO_RESCALE:
        del options["rescale_betas_zero_snr"]
        assert np.array_equal(scheduler.alphas_cumprod, get_scheduler(name, **options).alphas_cumprod)
    scheduler.set_timesteps(5)
    assert len(scheduler.timesteps) >= 5


@pytest.mark.parametrize(
    "options, message",
    [
        ({"name": "EulerAncestral"}, "unknown sampler 'EulerAncestral' (did you mean EulerAncestralDiscrete?)"),
        ({"prediction_type": "x"}, "prediction_type 'x' is not one of epsilon, v_prediction, sample"),
        ({"timestep_spacing": "x"}, "timestep_spacing 'x' is not one of linspace, leading, trailing"),
        ({"beta_schedule": "x"}, "beta_schedule 'x' is not one of linear, scaled_linear"),
        ({"beta_end": 2.0}, "beta_end is 2.0: choose a number between 0 and 1"),
    ],
)
def test_invalid_options_are_rejected(options, message):
    with pytest.raises(ValueError) as error:
        get_scheduler(**{"name": "DDIM", **options})
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    "name, options, steps, message",
    [
        ("DDIM", {}, 0, "the number of steps is 0: choose 1 to 1000"),
        ("DDIM", {}, 1001, "the number of steps is 1001: choose 1 to 1000"),
        ("DDIM", {}, 2.5, "the number of steps is 2.5: choose 1 to 1000"),
        ("DPMSolverMultistep", {}, 1000, "DPMSolverMultistep cannot take 1000 distinct steps with leading spacing"),
        ("DDIM", {"rescale_betas_zero_snr": True}, 10, "DDIM cannot start from zero SNR with prediction_type epsilon"),
    ],
)
def test_invalid_number_of_steps_is_rejected(name, options, steps, message):
    with pytest.raises(ValueError) as error:
        get_scheduler(name, **options).set_timesteps(steps)
    assert str(error.value).startswith(message)


def test_invalid_step_arguments_are_rejected():
    x = np.zeros(SHAPE, np.float32)
    scheduler = get_scheduler("DDPM")
    with pytest.raises(ValueError, match="timestep 5 is not in scheduler.timesteps"):
        scheduler.step(x, 5, x)
    scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match=r"the noise has shape \(3,\), the sample \(1, 4, 3, 4, 4\)"):
        scheduler.step(x, scheduler.timesteps[0], x, noise=np.zeros(3))
    with pytest.raises(ValueError, match="timesteps are 3 to 1000: choose 0 to 999"):
        scheduler.add_noise(x, x, np.array([3, 1000]))
    scheduler = get_scheduler("PNDM")
    scheduler.set_timesteps(10)
    with pytest.raises(ValueError, match="in the middle of a step"):
        scheduler.step(x, scheduler.timesteps[1], x)


def test_numpy_does_not_import_mindspore(run):
    finished = run(
        "-c",
        "import sys, opensora.schedulers as s, numpy as np\n"
        "d = s.get_scheduler('DDPM'); d.set_timesteps(1)\n"
        "x = np.zeros((1, 2)); d.step(x, d.timesteps[0], x)\n"
        "print('mindspore' in sys.modules)",
    )
    assert finished.stdout.strip() == "False", finished.stderr


@pytest.mark.parametrize("name", list(SCHEDULERS))
@pytest.mark.parametrize("steps", [250, 300, 999])
def test_many_steps_stay_finite(name, steps):
    """Trajectories this long visit the timesteps next to the last one, which have almost no signal."""
    rescale = SCHEDULERS[name].can_rescale if hasattr(SCHEDULERS[name], "can_rescale") else False
    scheduler = get_scheduler(name, prediction_type="v_prediction", rescale_betas_zero_snr=rescale)
    scheduler.set_timesteps(steps)
    x = np.float32(scheduler.init_noise_sigma) * np.random.RandomState(0).standard_normal((1, 2)).astype(np.float32)
    for t in scheduler.timesteps:
        x = scheduler.step(np.tanh(scheduler.scale_model_input(x, t)), t, x)
    assert np.isfinite(x).all()
