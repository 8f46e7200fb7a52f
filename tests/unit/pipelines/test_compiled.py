"""Compilation of small transformers for the denoising loop."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from tiny_models import DIT, make_release

from opensora.models import OpenSoraT2V_v1_3
from opensora.pipelines import OpenSoraPipeline
from opensora.pipelines.compiled import LEAST_CALLS, Compiled, can_compile, compiled, pays

LATENTS = Tensor(np.zeros((1, 8, 2, 4, 8), np.float32))
SAMPLE = dict(num_frames=5, height=32, width=64, max_sequence_length=64, output_type="latent")


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return make_release(tmp_path_factory.mktemp("release"))


@pytest.fixture(scope="module")
def transformer():
    return OpenSoraT2V_v1_3(**DIT).set_train(False)


def test_small_models_are_compiled_for_enough_calls(transformer):
    assert pays(transformer, LATENTS, 2, LEAST_CALLS)
    assert not pays(transformer, LATENTS, 2, LEAST_CALLS - 1)
    large = Tensor(np.zeros((1, 8, 24, 44, 80), np.float32))
    assert not pays(transformer, large, 2, 100)
    wide = OpenSoraT2V_v1_3.without_weights(**{**DIT, "num_attention_heads": 24, "cross_attention_dim": 576})
    assert pays(wide, LATENTS, 1, 100) and not pays(wide, Tensor(np.zeros((1, 8, 5, 32, 32), np.float32)), 1, 100)


def test_what_cannot_be_compiled_is_not(release):
    folder = release / "transformer"
    assert can_compile(OpenSoraT2V_v1_3.from_pretrained(folder))
    assert can_compile(OpenSoraT2V_v1_3.from_pretrained(folder, ms.float16))
    assert not can_compile(OpenSoraT2V_v1_3.from_pretrained(folder, ms.bfloat16))
    assert can_compile(OpenSoraT2V_v1_3.from_pretrained(folder, weights="bf16"))  # computes in float32
    assert not can_compile(OpenSoraT2V_v1_3.from_pretrained(folder, streamed=True))
    assert not can_compile(object())
    ms.set_context(mode=ms.GRAPH_MODE)
    try:
        assert not can_compile(OpenSoraT2V_v1_3.from_pretrained(folder))
    finally:
        ms.set_context(mode=ms.PYNATIVE_MODE)


@pytest.mark.parametrize("cache, weights", [(None, None), ("first_block:0.25", None), (None, "q8_0")])
def test_compiled_pipeline_gives_the_same_video(cache, weights, release, monkeypatch, capfd):
    folders = release / "transformer", release / "vae", release / "text"
    pipeline = OpenSoraPipeline.from_pretrained(*folders, weights=weights)

    def make(prompt):
        return pipeline(prompt, **SAMPLE, num_inference_steps=LEAST_CALLS, cache=cache)

    first, calls = make("a"), pipeline.model_calls
    assert pipeline.compiled
    notes = capfd.readouterr().err
    assert "compiling" in notes and "for inputs of 1x8x2x4x8" in notes and "compiled in" in notes
    assert (make("a") == first).all()
    make("another prompt")  # of the same shapes
    assert "compiling" not in capfd.readouterr().err
    monkeypatch.setattr("opensora.pipelines.denoise.pays", lambda *_: False)
    eager = make("a")
    assert not pipeline.compiled and pipeline.model_calls == calls
    assert np.abs(eager - first).max() <= 1e-5 * np.abs(first).max()


def test_transformer_is_compiled_once():
    model = OpenSoraT2V_v1_3(**DIT).set_train(False)
    assert isinstance(compiled(model), Compiled) and compiled(model) is compiled(model)
    inputs = LATENTS, Tensor([500.0]), Tensor(np.zeros((1, 1, 4, DIT["caption_channels"]), np.float32))
    assert np.allclose(compiled(model)(*inputs).asnumpy(), model(*inputs).asnumpy(), atol=1e-5)
