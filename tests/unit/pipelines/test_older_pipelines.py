"""Sampling with Open-Sora-Plan v1.0 to v1.2: golden cases, and what differs between the generations."""

from __future__ import annotations

import numpy as np
import pytest
from golden_cases import case, case_names
from golden_pipelines import PIPELINE_CASES, golden_pipeline, pipeline_rows

from opensora.config.generations import GENERATIONS, generation_of
from opensora.doctor.tiny_release import write_text_encoder
from opensora.models import MT5EncoderModel
from opensora.models.text_encoder.tokenizer import Tokenizer
from opensora.pipelines.published import cleaned_text, make_scheduler
from opensora.pipelines.text import embed_cut, embed_text


@pytest.mark.parametrize("name", case_names("pipeline_", PIPELINE_CASES))
def test_trajectory_and_frames_match_reference(name, mode):
    rows = pipeline_rows(name)
    assert rows["trajectory"] < 1e-3 and rows["frames"] <= 1, rows


@pytest.mark.parametrize("name", case_names("pipeline_", PIPELINE_CASES))
def test_text_encoder_gets_the_published_texts(name):
    pipeline = golden_pipeline(name)
    texts = pipeline.text_of("A red circle"), cleaned_text(pipeline.generation, pipeline.negative_prompt)
    assert [text.strip() for text in texts] == [text.strip() for text in case(name, PIPELINE_CASES)["cleaned_texts"]]


def test_generation_is_known_from_the_config():
    assert generation_of({"_class_name": "LatteT2V"}).name == "v1_0"
    assert generation_of({"_class_name": "LatteT2V", "use_rope": False}).name == "v1_1"
    assert generation_of({"_class_name": "OpenSoraT2V"}).name == "v1_2"
    assert generation_of({"_class_name": "OpenSoraInpaint_v1_3"}).name == "v1_3"
    assert generation_of({"_class_name": "STDiT"}) is None


@pytest.mark.parametrize("version, clips", [("v1_0", True), ("v1_1", True), ("v1_2", False), ("v1_3", False)])
def test_samplers_are_built_as_published(version, clips):
    generation = GENERATIONS[version]
    assert make_scheduler(generation, "DDIM").clip_sample is clips
    spaced = make_scheduler(generation, "EulerAncestralDiscrete")
    spaced.set_timesteps(4)
    assert (spaced.timesteps[0] == 999) == (version != "v1_3")


def test_texts_are_cut_to_the_length_of_the_prompt(tmp_path):
    """Also a shorter text, whose states at padded positions are those of the encoder with its padding masked."""
    encoder, tokenizer = MT5EncoderModel.from_pretrained(write_text_encoder(tmp_path)), Tokenizer(tmp_path)
    (cut,) = embed_cut(encoder, tokenizer, ["a red circle"], ["", "something much longer"], 300)
    whole = embed_text(encoder, tokenizer, ["", "something much longer", "a red circle"], 64)
    length = int(whole.mask[2].sum())
    assert cut.states.shape == (3, length, 32) and cut.mask.all()
    assert np.allclose(cut.states[[0, 2]], whole.states[[0, 2], :length], atol=1e-5)
