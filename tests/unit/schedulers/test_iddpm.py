"""The samplers and losses of Open-Sora v1.1 against golden values, and their properties."""

from __future__ import annotations

import math

import mindspore as ms
import numpy as np
import pytest
from golden_cases import case_names, relative_difference
from golden_iddpm import CASES, MEASURES, Toy
from golden_models import build, stdit_inputs
from mindspore import Parameter, Tensor, nn, ops

from opensora.schedulers.iddpm import IDDPM, DPMSolver, IDDPMSpeed, TrainingLoss
from opensora.schedulers.iddpm.loss import discretized_log_likelihood
from opensora.schedulers.iddpm.tables import kept_timesteps, make_tables, training_betas

GOLDEN = {name: measure for prefix, measure in MEASURES.items() for name in case_names(prefix, CASES)}


@pytest.mark.parametrize("name", GOLDEN)
def test_values_match_golden(name):
    rows = GOLDEN[name](name)
    assert rows and max(rows.values()) < 1e-4, rows


def random(*shape, seed=0) -> np.ndarray:
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


SHAPE = (2, 4, 3, 2, 2)


class Constant(nn.Cell):
    """A model whose output is a parameter."""

    def __init__(self, prediction: np.ndarray):
        super().__init__()
        self.prediction = Parameter(Tensor(prediction))

    def construct(self, x, t, x_mask=None):
        return self.prediction


def perfect_model(x0: np.ndarray, scheduler: IDDPM, predict_xstart: bool = False, channels: int = 2):
    """A model that knows x0; its output has `channels` times the channels of x."""
    known = {
        int(t): (signal, deviation)
        for t, signal, deviation in zip(
            scheduler.tables.timestep_map,
            scheduler.tables.sqrt_alphas_cumprod,
            scheduler.tables.sqrt_one_minus_alphas_cumprod,
        )
    }

    def predict(x, t, x_mask):
        signal, deviation = known[int(t)]
        answer = Tensor(x0) if predict_xstart else (x - float(signal) * Tensor(x0)) / float(deviation)
        return ops.cat([answer] + [ops.zeros_like(answer)] * (channels - 1), 1)

    return predict


def last(states):
    *_, state = states
    return state.asnumpy()


@pytest.mark.parametrize(
    "options, channels",
    [
        ({}, 2),
        ({"learn_sigma": False}, 1),
        ({"learn_sigma": False, "sigma_small": True}, 1),
        ({"predict_xstart": True}, 2),
        ({"noise_schedule": "squaredcos_cap_v2"}, 2),
        ({"timestep_respacing": "ddim25", "num_sampling_steps": None}, 2),
        ({"num_sampling_steps": 1}, 2),
    ],
)
def test_perfect_predictions_recover_the_sample(options, channels):
    scheduler, x0 = IDDPM(**{"num_sampling_steps": 20, **options}), random(*SHAPE)
    predict = perfect_model(x0, scheduler, scheduler.predict_xstart, channels)
    # At the first timestep 1 - ᾱ has four digits in float32, as in the published tables.
    assert relative_difference(last(scheduler.trajectory(predict, Tensor(random(*SHAPE, seed=1)))), x0) < 1e-3


def test_learned_variance_interpolates_beta_and_posterior():
    scheduler = IDDPM(num_sampling_steps=50)
    for share, table in ((1, scheduler.tables.betas), (-1, scheduler.tables.posterior_variance)):
        output = Tensor(np.concatenate([np.zeros(SHAPE), np.full(SHAPE, share)], 1).astype(np.float32))
        x, noise = Tensor(np.zeros(SHAPE, np.float32)), Tensor(np.ones(SHAPE, np.float32))
        assert np.allclose(scheduler.step(output, 7, x, noise).asnumpy(), np.sqrt(table[7]), rtol=1e-5)


def test_conditioning_frames_stay_until_the_last_step():
    scheduler, x = IDDPM(num_sampling_steps=6), Tensor(random(*SHAPE))
    predict = perfect_model(random(*SHAPE, seed=1), scheduler)
    mask = [[0, 1, 0.5], [1, 1, 1]]
    states = [state.asnumpy() for state in scheduler.trajectory(predict, x, mask, lambda k: random(*SHAPE, seed=2 + k))]
    start = x.asnumpy()
    assert all((state[0, :, 0] == start[0, :, 0]).all() for state in states[:-1])
    assert (states[-1][0, :, 0] != start[0, :, 0]).any()
    changed = [(state[0, :, 2] != start[0, :, 2]).any() for state in states]
    assert changed == [False, False, True, True, True, True]  # steps 5, 4, then 3 of 6, which is half of them
    assert all((state[:, :, 1] != start[:, :, 1]).all() for state in states)


def test_mask_of_ones_equals_no_mask():
    scheduler, x = IDDPM(num_sampling_steps=5), Tensor(random(*SHAPE))
    toy = Toy(random(*SHAPE, seed=1))

    def predict(x, t, x_mask):
        return toy(x, Tensor(np.full(len(x), t, np.float32)), None, x_mask)

    plain = last(scheduler.trajectory(predict, x, None, lambda k: random(*SHAPE, seed=k)))
    masked = last(scheduler.trajectory(predict, x, np.ones((2, 3)), lambda k: random(*SHAPE, seed=k // 2)))
    assert (plain == masked).all()


def test_noise_is_sampled_by_default():
    toy = Toy(random(*SHAPE), random(3, 5, seed=1))
    runs = []
    for seed in (1, 1, 2):
        ms.set_seed(seed)
        runs.append(IDDPM(num_sampling_steps=3).sample(toy, random(*SHAPE, seed=2), {"y": Tensor(random(2, 1, 3, 5))}))
    assert (runs[0] == runs[1]).all() and (runs[0] != runs[2]).all()


@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
def test_noise_schedules_end_in_noise(schedule):
    alphas_cumprod = np.cumprod(1 - training_betas(schedule, 1000))
    assert alphas_cumprod[0] > 0.999 and alphas_cumprod[-1] < 1e-4 and (np.diff(alphas_cumprod) < 0).all()
    fewer = np.cumprod(1 - training_betas(schedule, 250))
    assert np.allclose(fewer[:200], alphas_cumprod[3:800:4], atol=0.02)


@pytest.mark.parametrize("respacing", ["", "1000", "ddim1000", "500,500"])
def test_full_respacing_keeps_all_timesteps(respacing):
    assert (kept_timesteps(respacing, 1000) == np.arange(1000)).all()


def test_number_of_steps_equals_respacing():
    assert (IDDPM(num_sampling_steps=30).tables.betas == IDDPM(timestep_respacing="30").tables.betas).all()
    assert list(make_tables("linear", 1000, "1").timestep_map) == [0]


def test_level_probabilities_sum_to_one():
    levels = Tensor((np.arange(256) / 127.5 - 1).astype(np.float32).reshape(1, 1, -1, 1, 1))
    for mean, log_std in ((0.0, -1.0), (0.3, -4.0), (-1.2, 0.5)):
        likelihood = discretized_log_likelihood(levels, Tensor(mean, ms.float32), Tensor(log_std, ms.float32))
        assert np.exp(likelihood.asnumpy()).sum() == pytest.approx(1, abs=1e-4)


def test_bound_trains_only_the_variance():
    prediction, x0, noise = random(2, 8, 3, 2, 2), Tensor(random(*SHAPE, seed=1)), random(*SHAPE, seed=2)
    model, scheduler, t = Constant(prediction), IDDPM(), np.array([0, 500])

    def gradient(term):
        def loss():
            return scheduler.training_losses(model, x0, {}, None, Tensor(noise), t)[term].sum()

        return ms.grad(loss, None, model.trainable_params())()[0].asnumpy()

    of_noise, of_variance = np.split(gradient("vb"), 2, 1)
    assert not of_noise.any() and of_variance.all()
    of_noise, of_variance = np.split(gradient("mse"), 2, 1)
    assert np.allclose(of_noise, 2 * (prediction[:, :4] - noise) / noise[0].size, rtol=1e-4) and not of_variance.any()


def test_fully_conditioned_sample_has_zero_loss():
    model, scheduler = Constant(random(2, 8, 3, 2, 2)), IDDPM()
    mask = Tensor(np.array([[0, 0, 0], [0, 1, 1]], np.float32))

    def loss():
        losses = scheduler.training_losses(model, Tensor(random(*SHAPE)), {}, mask, Tensor(random(*SHAPE)), [3, 0])
        return losses["loss"].sum(), losses["loss"]

    (gradient,), losses = ms.grad(loss, None, model.trainable_params(), has_aux=True)()
    assert losses[0].asnumpy()[0] == 0 < losses[0].asnumpy()[1]
    gradient = gradient.asnumpy()
    assert np.isfinite(gradient).all() and not gradient[0].any()
    assert not gradient[1, :, 0].any() and gradient[1, :, 1:].all()


@pytest.mark.parametrize("graph", [False, True], ids=["pynative", "graph"])
def test_training_loss_is_the_mean_loss(graph):
    model = build("stdit2_qknorm_xmask", CASES, depth=1).set_train()
    model.y_embedder.dropout = 0.0
    inputs = stdit_inputs("stdit2_qknorm_xmask")
    x, noise, t = inputs.pop("x"), Tensor(random(2, 4, 5, 5, 7, seed=3)), Tensor([0, 700], ms.int32)
    x_mask = inputs.pop("x_mask")
    mask = x_mask.astype(ms.float32)
    inputs.pop("timestep")
    scheduler = IDDPM()
    expected = scheduler.training_losses(model, x, inputs, mask, noise, t)["loss"].asnumpy().mean()
    arguments = [{**inputs, "x_mask": x_mask}.get(name) for name in model.conditions]
    ms.set_context(mode=1 - graph)
    try:
        loss = TrainingLoss(model, scheduler)
        actual, slopes = ms.value_and_grad(loss, None, model.trainable_params())(x, noise, t, mask, *arguments)
    finally:
        ms.set_context(mode=1)
    assert float(actual) == pytest.approx(expected, rel=1e-5)
    assert all(np.isfinite(slope.asnumpy()).all() for slope in slopes)


def test_training_timesteps_are_uniform():
    assert IDDPM().timesteps([0.0, 0.5, 0.9999]).tolist() == [0, 500, 999]
    assert IDDPM(timestep_respacing="10").timesteps([0.0, 0.99]).tolist() == [0, 9]


@pytest.mark.parametrize("batch", [1, 2, 7, 8])
def test_speed_samples_timesteps_and_their_mirrors(batch):
    scheduler = IDDPMSpeed()
    steps = scheduler.timesteps(np.random.RandomState(0).random_sample(batch))
    sampled_first = batch // 2 + 1
    assert len(steps) == batch and steps.min() >= 0 and steps.max() < 1000
    mirrors = np.abs(scheduler.meaningful_steps - steps[:sampled_first])[: batch - sampled_first]
    assert (steps[sampled_first:] == mirrors).all()


def test_speed_samples_by_its_probabilities():
    scheduler = IDDPMSpeed()
    steps = scheduler.timesteps(np.random.RandomState(0).random_sample(40000))[:20001]
    assert (steps < 641).mean() == pytest.approx(scheduler.probabilities[:641].sum(), abs=0.01)


@pytest.mark.parametrize("steps", [1, 2, 5, 9, 10, 11, 40])
def test_dpm_solver_recovers_the_sample(steps):
    x0 = random(*SHAPE)
    schedule = 0.5 * np.log(np.cumprod(1 - training_betas("linear", 1000)))

    class Knowing(nn.Cell):
        def null_text(self, n):
            return Tensor(np.zeros((n, 1, 3, 5), np.float32))

        def construct(self, x, t, y):
            signal = np.exp(np.interp(float(t[0]) / 1000 + 1e-3, np.arange(1, 1001) / 1000, schedule))
            eps = (x - float(signal) * Tensor(np.tile(x0, (2, 1, 1, 1, 1)))) / math.sqrt(1 - signal**2)
            return ops.cat((eps, eps), 1)

    text = {"y": Tensor(random(2, 1, 3, 5))}
    sample = DPMSolver(steps).sample(Knowing(), random(*SHAPE, seed=1), text, np.ones((2, 3)))
    assert relative_difference(sample.asnumpy(), x0) < 0.05  # some noise remains: sampling ends before time 0


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: IDDPM(num_sampling_steps=5, timestep_respacing="5"), "set the same value: leave one out"),
        (lambda: IDDPM(num_sampling_steps=0), "timestep_respacing '0'"),
        (lambda: IDDPM(num_sampling_steps=1001), "1001 steps in a section of 1000 timesteps"),
        (lambda: IDDPM(timestep_respacing="ddim999"), "no stride gives 999 steps"),
        (lambda: IDDPM(timestep_respacing="ten"), "'ten'.*use for example 'ddim25'"),
        (lambda: IDDPM(noise_schedule="cosine"), "noise_schedule 'cosine' is not one of"),
        (lambda: DPMSolver(0), "number of steps is 0"),
        (lambda: IDDPMSpeed().sample(None, None, {}), "training only"),
        (lambda: DPMSolver().training_losses(None, None, {}), "sampling only"),
        (lambda: DPMSolver(2).run(None, random(*SHAPE), [[0, 1, 1]] * 2), "no conditioning frames"),
        (lambda: last(IDDPM(2).trajectory(None, Tensor(random(*SHAPE)), [[1, 1]] * 2)), "2 x 3 frames"),
        (lambda: last(IDDPM(2).trajectory(None, Tensor(random(*SHAPE)), [[1, 1, 2]] * 2)), "1 to 2"),
        (
            lambda: last(
                IDDPM(2).trajectory(
                    lambda *_: Tensor(random(2, 8, 3, 2, 2)), Tensor(random(*SHAPE)), None, lambda k: random(3)
                )
            ),
            "the noise has shape",
        ),
        (
            lambda: IDDPM(use_kl=True).training_losses(
                None, Tensor(random(*SHAPE)), {}, Tensor(np.ones((2, 3), np.float32))
            ),
            "leave out mask_ratios or use_kl",
        ),
    ],
)
def test_invalid_arguments_are_rejected(make, message):
    with pytest.raises(ValueError, match=message):
        make()
