"""Step caching, guidance on an interval, and what guided sampling computes once."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from golden_cases import relative_difference
from mindspore import Tensor, ops
from tiny_models import DIT

from opensora.config.acceleration import CacheSettings, check_guidance_interval, parse_cache
from opensora.models import DiT, Latte, OpenSoraInpaint_v1_3, OpenSoraT2V_v1_3, PixArt, PixArtMS, STDiT, STDiT2
from opensora.parallel.agreement import Agreement
from opensora.pipelines.denoise import DenoiseSettings, denoise
from opensora.pipelines.guidance import Guidance, GuidedPrediction, NegativeStates
from opensora.pipelines.stdit import ClipSize, STDiTPipeline
from opensora.pipelines.step_cache import EasyCache, StepPolicy
from opensora.pipelines.text import TextEmbedding
from opensora.schedulers import SCHEDULERS, get_scheduler
from opensora.schedulers.iddpm import IDDPM, DPMSolver

SHAPE = (1, 8, 2, 8, 8)
STDIT = dict(
    input_size=[2, 8, 8], in_channels=4, caption_channels=32, depth=3, hidden_size=96, num_heads=4, model_max_length=6
)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def filled(model):
    """The model with weights that are not zero."""
    for number, parameter in enumerate(model.get_parameters()):
        parameter.set_data(Tensor(0.1 * noise(*parameter.shape, seed=number)))
    return model.set_train(False)


@pytest.fixture(scope="module")
def transformer():
    return filled(OpenSoraT2V_v1_3(**DIT))


def texts(rows: int) -> TextEmbedding:
    mask = np.ones((rows, 9), np.int32)
    mask[0, 5:] = 0  # the negative prompt is shorter
    return TextEmbedding(noise(rows, 9, DIT["caption_channels"], seed=1), mask)


def sample(model, settings=None, steps=10, scale=4.0, method="EulerAncestralDiscrete", condition=None):
    scheduler = get_scheduler(method, prediction_type="v_prediction")
    return denoise(
        model,
        scheduler,
        texts(2 if scale > 1 else 1),
        Tensor(noise(*SHAPE)),
        steps,
        scale,
        lambda k: Tensor(noise(*SHAPE, seed=100 + k)),
        condition,
        progress=False,
        settings=settings,
    )


def reference(model, x, timestep, text, scale, condition=None):
    """Guidance as the paper writes it: two rows of everything in one call."""
    x = x if condition is None else ops.cat((x, condition), 1)
    states, mask = Tensor(text.states).expand_dims(1), Tensor(text.mask[:, None])
    output = model(ops.cat((x, x), 0), Tensor([timestep] * 2, ms.float32), states, None, mask)
    return output[:1] + scale * (output[1:] - output[:1])


@pytest.mark.parametrize("model_class, channels", [(OpenSoraT2V_v1_3, 0), (OpenSoraInpaint_v1_3, 12)])
def test_what_is_computed_once_does_not_change_the_prediction(model_class, channels, mode):
    model, text = filled(model_class(**DIT)), texts(2)
    condition = Tensor(noise(1, channels, *SHAPE[2:], seed=5)) if channels else None
    timesteps = np.array([900, 300], np.float32)
    prediction = GuidedPrediction(model, model, text, timesteps, Guidance(4.0), condition, NegativeStates())
    x = Tensor(noise(*SHAPE, seed=2))
    for step, timestep in enumerate(timesteps):
        expected = reference(model, x, float(timestep), text, 4.0, condition)
        assert relative_difference(prediction(x, step).asnumpy(), expected.asnumpy()) < 1e-5


def test_negative_prompt_is_projected_once_for_a_run(transformer, monkeypatch):
    projected = []
    original = type(transformer).text_states
    monkeypatch.setattr(
        type(transformer), "text_states", lambda self, text: projected.append(text) or original(self, text)
    )
    settings = DenoiseSettings()
    first = sample(transformer, settings, steps=2)
    again = sample(transformer, settings, steps=2)
    assert len(projected) == 3  # the negative prompt, and the prompt of each video
    assert (first.latents.asnumpy() == again.latents.asnumpy()).all()


def test_guidance_interval(transformer):
    whole, guided = sample(transformer), DenoiseSettings.of(None, (0, 1))
    assert (sample(transformer, guided).latents.asnumpy() == whole.latents.asnumpy()).all()
    nowhere = sample(transformer, DenoiseSettings.of(None, (0, 0)))  # no timestep but 0, where the last step starts
    assert relative_difference(nowhere.latents.asnumpy(), whole.latents.asnumpy()) > 1e-2
    settings = DenoiseSettings.of(None, (0.35, 0.65))
    timesteps = np.array([800, 500, 200], np.float32)
    text, x = texts(2), Tensor(noise(*SHAPE, seed=2))
    guidance = Guidance(4.0, settings.guidance_interval)
    prediction = GuidedPrediction(transformer, transformer, text, timesteps, guidance, None, NegativeStates())
    for step, scale in enumerate((1.0, 4.0, 1.0)):
        expected = reference(transformer, x, float(timesteps[step]), text, scale)
        assert relative_difference(prediction(x, step).asnumpy(), expected.asnumpy()) < 1e-5


@pytest.mark.parametrize("cache", ["easy:1e-7", "first_block:1e-7"])
def test_tiny_threshold_calls_the_transformer_in_every_step(cache, transformer):
    full, cached = sample(transformer), sample(transformer, DenoiseSettings.of(cache, (0, 1)))
    assert cached.model_calls == full.model_calls == 10
    assert relative_difference(cached.latents.asnumpy(), full.latents.asnumpy()) < 1e-5


@pytest.mark.parametrize("method", ["easy", "first_block"])
def test_large_threshold_calls_it_in_the_first_and_last_steps_only(method, transformer):
    settings = DenoiseSettings(CacheSettings(method, 1e9))
    first = sample(transformer, settings)
    assert first.model_calls == 2 + 1 and np.isfinite(first.latents.asnumpy()).all()
    again = sample(transformer, settings)  # nothing is left over from the video before
    assert again.model_calls == 2 + 1 and (again.latents.asnumpy() == first.latents.asnumpy()).all()


@pytest.mark.parametrize("method", ["easy", "first_block"])
def test_graph_mode_gives_the_same_video_with_a_cache(method, transformer):
    settings = DenoiseSettings.of(f"{method}:0.3", (0, 1))
    expected = sample(transformer, settings)
    ms.set_context(mode=ms.GRAPH_MODE)
    try:
        actual = sample(transformer, settings)
    finally:
        ms.set_context(mode=ms.PYNATIVE_MODE)
    assert actual.model_calls == expected.model_calls
    assert relative_difference(actual.latents.asnumpy(), expected.latents.asnumpy()) < 1e-4


def test_step_after_the_guidance_interval_calls_the_transformer(transformer):
    """Predictions with and without guidance differ, whatever the threshold."""
    for method in ("easy", "first_block"):
        cache = CacheSettings(method, 1e9)
        whole = sample(transformer, DenoiseSettings(cache), steps=20)
        half = sample(transformer, DenoiseSettings(cache, (0, 0.5)), steps=20)
        assert half.model_calls == whole.model_calls + 1 == 4


class KnowsTheSample:
    """The prediction of a model that knows x_0: it changes in every step, although x_0 does not."""

    def __init__(self, levels, x0):
        self.levels, self.x0, self.calls = levels, x0, 0

    def context(self, step):
        return None

    def __call__(self, x, step):
        self.calls += 1
        return self.levels.output(self.x0, x, step)


@pytest.mark.parametrize("method", SCHEDULERS)
def test_known_sample_needs_no_further_calls(method):
    """For every sampler, also those that add noise: what is reused is x_0, and what is judged is its change."""
    x0, results, calls = Tensor(noise(*SHAPE, seed=9)), [], []
    for threshold in (None, 0.05):
        scheduler = get_scheduler(method, prediction_type="v_prediction")
        scheduler.set_timesteps(20)
        predict = KnowsTheSample(scheduler.levels(), x0)
        if threshold:
            predict = EasyCache(predict, scheduler.levels(), threshold, Agreement())
        x = Tensor(noise(*SHAPE)) * scheduler.init_noise_sigma
        for step, t in enumerate(scheduler.timesteps):
            output = predict(scheduler.scale_model_input(x, t), step)
            x = scheduler.step(output, t, x, noise=lambda k: Tensor(noise(*SHAPE, seed=100 + k)))
        results.append(x.asnumpy())
        calls.append(predict.calls)
    assert calls[0] == len(scheduler.timesteps) and calls[1] <= 2 + 0.1 * calls[0] + 1
    assert relative_difference(results[1], results[0]) < 1e-3


def test_first_and_last_steps_are_always_computed():
    policy = StepPolicy(50)
    assert [step for step in range(50) if policy.must_call(step)] == [0, 1, 2, 3, 4, 49]
    assert all(StepPolicy(2).must_call(step) for step in range(2))


@pytest.mark.parametrize("scheduler", [IDDPM(num_sampling_steps=10), DPMSolver(num_sampling_steps=10)])
@pytest.mark.parametrize("references", [False, True])
def test_stdit_pipeline_equals_the_sampler_alone(scheduler, references):
    if references and isinstance(scheduler, DPMSolver):
        pytest.skip("dpm-solver has no conditioning frames")
    model = filled(STDiT2(**STDIT))
    text = {"y": Tensor(noise(2, 1, 6, 32)), "mask": Tensor(np.array([[1] * 6, [1] * 4 + [0] * 2], np.int32))}
    size, latents = ClipSize(8, 64, 64, 24), noise(2, 4, 2, 8, 8)
    mask = np.array([[0, 1], [0.5, 1]], np.float32) if references else None

    def steps(k):
        return noise(2, 4, 2, 8, 8, seed=k)

    expected = scheduler.sample(model, latents, {**text, **size.conditioning(2)}, mask, steps).asnumpy()
    pipeline = STDiTPipeline(None, model, None, scheduler)
    assert relative_difference(pipeline.sample(text, size, latents, mask, steps).asnumpy(), expected) < 1e-4
    assert pipeline.model_calls == 10
    for cache, least, most in (("easy:1e-7", 10, 10), ("first_block:1e-7", 10, 10), ("easy:50", 3, 6)):
        pipeline.cache = parse_cache(cache)
        cached = pipeline.sample(text, size, latents, mask, steps).asnumpy()
        assert least <= pipeline.model_calls <= most
        if least == 10:
            assert relative_difference(cached, expected) < 1e-4


V1_0 = dict(depth=3, hidden_size=96, num_heads=4, input_size=[2, 8, 8], caption_channels=32, model_max_length=6)
TEXT = {"y": Tensor(noise(2, 1, 6, 32)), "mask": Tensor(np.array([[1] * 6, [1] * 4 + [0] * 2], np.int32))}
POOLED, LABELS = {"y": Tensor(noise(2, 1, 1, 32))}, {"y": Tensor(np.array([3, 0], np.int32))}


@pytest.mark.parametrize(
    "model_class, text, changes",
    [
        (STDiT, TEXT, {}),
        (PixArt, TEXT, {}),
        (PixArtMS, TEXT, {}),
        (DiT, POOLED, {"patch_size": [2, 2, 2]}),
        (Latte, LABELS, {"condition": "label_4"}),
    ],
)
def test_pipeline_of_v1_0_equals_the_sampler_alone(model_class, text, changes):
    """With conditioning frames where the model has them."""
    model, scheduler = filled(model_class(**V1_0, **changes)), IDDPM(num_sampling_steps=5, cfg_channel=3)
    size, latents = ClipSize(2, 64, 64, 24), noise(2, 4, 2, 8, 8)
    mask = np.array([[0, 1], [0.5, 1]], np.float32) if model_class is STDiT else None
    conditions = {name: x for name, x in {**text, **size.conditioning(2)}.items() if name in model.conditions}

    def steps(k):
        return noise(2, 4, 2, 8, 8, seed=k)

    expected = scheduler.sample(model, latents, conditions, mask, steps).asnumpy()
    pipeline = STDiTPipeline(None, model, None, scheduler)
    for cache, calls in ((None, 5), ("easy:1e-7", 5), ("first_block:1e-7", 5), ("first_block:100", 3)):
        pipeline.cache = parse_cache(cache)
        found = pipeline.sample(text, size, latents, mask, steps).asnumpy()
        assert pipeline.model_calls == calls
        if calls == 5:
            assert relative_difference(found, expected) < 1e-4, cache


@pytest.mark.parametrize(
    "value, reason",
    [
        ("esy", r"'esy' is not a method of step caching \(did you mean easy\?\)"),
        ("tea", "choose easy or first_block"),
        ("easy:", "should be a number from 0"),
        ("easy:nan", "as in easy:0"),
        ("first_block:-1", "should be a number from 0"),
        ("easy:0", "the threshold must be above 0"),
    ],
)
def test_wrong_caches_are_refused(value, reason):
    with pytest.raises(ValueError, match=reason):
        parse_cache(value)


@pytest.mark.parametrize("value", [(0.5,), (0.6, 0.5), (-0.1, 1), (0, 1.1), (0, float("nan")), 3, ("a", 1)])
def test_wrong_intervals_are_refused(value):
    with pytest.raises(ValueError, match="guidance_interval"):
        check_guidance_interval(value)
