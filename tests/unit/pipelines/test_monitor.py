"""Denoising that is watched, ended, and continued in another process."""

from __future__ import annotations

import numpy as np
import pytest
from golden_cases import relative_difference
from tiny_models import make_release

from opensora.config.families import SAMPLERS
from opensora.pipelines import OpenSoraPipeline
from opensora.pipelines.denoise import DenoiseSettings
from opensora.pipelines.monitor import Cancelled
from opensora.serve.job_monitor import JobMonitor, save_state

STEPS, STOPPED_AFTER = 8, 5


class Recorder:
    """Keeps what it sees, and ends the denoising after some steps."""

    def __init__(self, state=None, stop_after=None):
        self.state, self.stop_after, self.seen, self.states = state, stop_after, [], {}

    def resume(self):
        return self.state

    def after_step(self, done):
        self.seen.append((done.step, done.steps))
        if done.state is not None:
            self.states[done.step] = done.state()
        self.x0 = done.predicted_x0()
        if done.step == self.stop_after:
            raise Cancelled


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    """A pipeline for each sampler, with shared models."""
    release = make_release(tmp_path_factory.mktemp("release"))
    first = None

    def make(method: str):
        nonlocal first
        zero_snr = method in ("EulerAncestralDiscrete", "DDIM")
        pipeline = OpenSoraPipeline.from_pretrained(
            release / "transformer",
            release / "vae",
            release / "text",
            sample_method=method,
            rescale_betas_zero_snr=zero_snr,
        )
        if first is not None:
            pipeline.text_encoder, pipeline.transformer = first.text_encoder, first.transformer
        first = pipeline
        return pipeline

    return make


def denoise(pipeline, monitor=None, cache=None):
    text = pipeline.embed_prompt("a square", 3.0, 64)
    settings = DenoiseSettings.of(cache, (0, 1), compiles=False)
    settings = DenoiseSettings(settings.cache, compiles=False, monitor=monitor)
    return pipeline.denoise(text, 5, 32, 32, STEPS, 3.0, seed=7, progress=False, settings=settings).asnumpy()


@pytest.mark.parametrize("method", SAMPLERS)
def test_interrupted_denoising_continues_exactly(method, pipelines, tmp_path):
    pipeline = pipelines(method)
    whole = Recorder()
    expected = denoise(pipeline, whole)
    calls = pipeline.model_calls
    assert np.array_equal(expected, denoise(pipeline)) and whole.seen[-1] == (calls, calls)
    for stop in (STOPPED_AFTER, STOPPED_AFTER + 1):  # also in the middle of a step of two calls
        stopped = Recorder(stop_after=stop)
        with pytest.raises(Cancelled):
            denoise(pipeline, stopped)
        save_state(tmp_path / "state.npz", stopped.states[stop])
        found = JobMonitor(tmp_path, print, lambda: False, None, 8, 0, 0, writes=False).resume()
        assert found is not None
        continued = Recorder(found)
        assert np.array_equal(denoise(pipelines(method), continued), expected)
        assert [step for step, _ in continued.seen] == list(range(stop + 1, calls + 1))
    assert pipeline.model_calls == calls


def test_predicted_x0_ends_at_the_result(pipelines):
    monitor = Recorder()
    result = denoise(pipelines("DDIM"), monitor)
    assert relative_difference(monitor.x0.asnumpy(), result) < 1e-5


def test_states_are_not_kept_with_step_caching(pipelines):
    monitor = Recorder(state={"step": np.array(3)})
    denoise(pipelines("DDIM"), monitor, cache="easy")
    assert monitor.states == {} and monitor.seen[0] == (1, STEPS)


def test_damaged_state_is_not_used(tmp_path):
    monitor = JobMonitor(tmp_path, print, lambda: False, None, 8, 0, 0, writes=False)
    assert monitor.resume() is None
    for content in (b"", b"PK\x03\x04 no archive", b"\x93NUMPY"):
        (tmp_path / "state.npz").write_bytes(content)
        assert monitor.resume() is None
