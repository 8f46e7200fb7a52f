"""Text embeddings of several prompts, with loaded and streamed text encoders."""

from __future__ import annotations

import numpy as np
import pytest
from golden_cases import relative_difference
from tiny_models import make_release

from opensora.models import MT5EncoderModel
from opensora.models.model_digest import model_digest
from opensora.models.text_encoder.tokenizer import Tokenizer
from opensora.pipelines import text as text_module
from opensora.pipelines.lazy import LazyModel
from opensora.pipelines.t2v import OpenSoraPipeline
from opensora.pipelines.text import TextEmbedding, embed_text, embed_texts

# Tokens are bytes: lengths of 2 to 131, which are rounded up to 64, 128 and 192.
TEXTS = ["a", "", "fog over the sea " * 4, "x" * 63, "x" * 64, "two words", "z" * 130, "b"]
LENGTHS = [64, 64, 128, 64, 128, 64, 192, 64]
MAX_LENGTH = 200


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return make_release(tmp_path_factory.mktemp("release"))


@pytest.fixture(scope="module")
def tokenizer(release):
    return Tokenizer(release / "text")


@pytest.fixture(scope="module", params=["loaded", "streamed"])
def encoder(request, release):
    options = {"loaded": {}, "streamed": {"weights": "q8_0", "streamed": True}}[request.param]
    return MT5EncoderModel.from_pretrained(release / "text", **options).set_train(False)


def same(one: TextEmbedding, other: TextEmbedding) -> bool:
    return np.array_equal(one.states, other.states) and np.array_equal(one.mask, other.mask)


def test_texts_are_embedded_independently(encoder, tokenizer, monkeypatch):
    monkeypatch.setattr(text_module, "TEXTS_PER_PASS", 3)
    passes = []
    encode = encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda batches: passes.append(len(batches)) or encode(batches))
    found = list(embed_texts(encoder, tokenizer, TEXTS, MAX_LENGTH))
    assert passes == ([3, 3, 2] if encoder.is_streamed else [1] * len(TEXTS))
    for text, length, embedding in zip(TEXTS, LENGTHS, found):
        assert embedding.states.shape == (1, length, 32) and embedding.mask.shape == (1, length)
        assert embedding.mask.sum() == len(text) + 1
        (alone,) = embed_texts(encoder, tokenizer, [text], MAX_LENGTH)
        assert same(embedding, alone)
    assert all(map(same, reversed(found), embed_texts(encoder, tokenizer, TEXTS[::-1], MAX_LENGTH)))


def test_results_are_those_of_a_padded_batch(encoder, tokenizer):
    batch = embed_text(encoder, tokenizer, TEXTS, MAX_LENGTH)
    assert batch.states.shape == (len(TEXTS), MAX_LENGTH, 32)
    for row, (length, embedding) in enumerate(zip(LENGTHS, embed_texts(encoder, tokenizer, TEXTS, MAX_LENGTH))):
        tokens = embedding.mask[0].astype(bool)
        assert np.array_equal(batch.mask[row, :length], embedding.mask[0]) and not batch.mask[row, length:].any()
        assert relative_difference(embedding.states[0][tokens], batch.states[row, :length][tokens]) < 1e-5
    rows = embed_text(encoder, tokenizer, TEXTS, MAX_LENGTH, batch_size=3)
    visible = batch.mask[..., None]
    assert relative_difference(rows.states * visible, batch.states * visible) < 1e-5


def test_maximum_length_limits_the_texts(encoder, tokenizer):
    for embedding, length in zip(embed_texts(encoder, tokenizer, TEXTS, 100), LENGTHS):
        assert embedding.states.shape[1] == min(length, 100)
    assert list(embed_texts(encoder, tokenizer, [], MAX_LENGTH)) == []


def test_prompts_of_a_run_are_embedded_once(encoder, tokenizer, monkeypatch):
    pipeline = OpenSoraPipeline(
        LazyModel(lambda: encoder), tokenizer, *[LazyModel(lambda: pytest.fail("not needed"))] * 2, None, "a {}", "bad"
    )
    counts = []
    encode = encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda batches: counts.append(len(batches)) or encode(batches))
    prompts = ["cat", "x" * 130, "cat"]
    first, second, third = pipeline.embed_prompts(prompts, 7.5, MAX_LENGTH)
    assert sum(counts) == 3  # the negative prompt, and two distinct texts
    assert len(counts) == 1 or not encoder.is_streamed
    assert first.states.shape == (2, 64, 32) and second.states.shape == (2, 192, 32) and same(first, third)
    negative, cat, long = embed_texts(encoder, tokenizer, ["bad", "a cat", "a " + "x" * 130], MAX_LENGTH)
    assert same(first, TextEmbedding.concatenate([negative, cat]))
    assert np.array_equal(second.states[1:], long.states) and np.array_equal(second.mask[1:], long.mask)
    assert np.array_equal(second.states[:1, :64], negative.states) and second.mask[0].sum() == len("bad") + 1
    assert not second.states[0, 64:].any() and not second.mask[0, 64:].any()
    for prompt, embedding in zip(prompts, (first, second, third)):
        assert same(embedding, pipeline.embed_prompt(prompt, 7.5, MAX_LENGTH))
    (alone,) = pipeline.embed_prompts(["cat"], 1.0, MAX_LENGTH)
    assert same(alone, cat)


def test_digest_of_an_encoder(release):
    """It identifies the numbers, not where they are."""
    digests = {
        options: model_digest(MT5EncoderModel.from_pretrained(release / "text", **dict(options)))
        for options in (
            (),
            (("weights", "as_stored"),),
            (("streamed", True),),
            (("weights", "q8_0"),),
            (("weights", "q8_0"), ("streamed", True)),
            (("weights", "bf16"),),
            (("weights", "bf16"), ("streamed", True)),
        )
    }
    plain, stored, streamed, int8, int8_streamed, half, half_streamed = digests.values()
    assert plain == stored == streamed and int8 == int8_streamed and half == half_streamed
    assert len({plain, int8, half}) == 3


def test_streamed_pipeline_equals_a_loaded_one(release):
    """The whole pipeline with blocks that are read while they compute, in 8 bits: equal latents."""
    folders = (release / "transformer", release / "vae", release / "text")
    results = [
        OpenSoraPipeline.from_pretrained(*folders, weights="q8_0", streamed=streamed)(
            "a boat", 5, 32, 64, num_inference_steps=2, max_sequence_length=64, output_type="latent"
        )
        for streamed in (False, True)
    ]
    assert np.isfinite(results[0]).all() and np.array_equal(*results)
