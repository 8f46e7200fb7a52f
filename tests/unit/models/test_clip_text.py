"""The text encoders of Open-Sora v1.0, CLIP's and T5 v1.1, against the reference; loading of CLIP."""

from __future__ import annotations

import json

import mindspore as ms
import numpy as np
import pytest
from golden_cases import case, case_names, load_case, relative_difference
from golden_models import HPCAITECH_V1_CASES, build, clip_text_rows, t5_rows
from mindspore import Tensor

from opensora.checkpoint.formats.safetensors import write_safetensors
from opensora.checkpoint.lazy_tensor import ArrayTensor
from opensora.models import CLIPTextModel

TINY = "clip_text_tiny"


def ids_of(name: str) -> Tensor:
    return Tensor(load_case(name)["input_ids"].astype(np.int32))


@pytest.mark.parametrize("name", case_names("clip_text_", HPCAITECH_V1_CASES))
def test_output_matches_reference(name, mode):
    rows = clip_text_rows(name)
    assert max(rows.values()) < 1e-4, rows


@pytest.mark.parametrize("name", case_names("t5_", HPCAITECH_V1_CASES))
def test_t5_output_matches_reference(name, mode):
    rows = t5_rows(name)
    assert max(rows.values()) < 1e-4, rows


@pytest.mark.parametrize("dtype, tolerance", [(ms.float16, 5e-3), (ms.bfloat16, 5e-2)])
def test_16_bits(dtype, tolerance):
    model = build(TINY, HPCAITECH_V1_CASES)
    expected = model(ids_of(TINY))[1].asnumpy()
    model.cast(dtype)
    norms = {name for name, p in model.parameters_and_names() if p.dtype == ms.float32}
    assert norms and all("norm" in name for name in norms)
    difference = relative_difference(model(ids_of(TINY))[1].astype(ms.float32).asnumpy(), expected)
    assert tolerance / 100 < difference < tolerance


def test_size_of_vit_l_14():
    config = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "eos_token_id": 2}
    assert sum(p.size for p in CLIPTextModel.without_weights(**config).get_parameters()) == 123_060_480


@pytest.mark.parametrize("end, expected", [(2, [3, 1]), (5, [1, 0]), (9, [2, 1])])
def test_pooled_state_is_that_of_the_first_end_token(end, expected, mode):
    """2 stands for the largest id. A text without the end token has the state of its first token."""
    config = {**case(TINY, HPCAITECH_V1_CASES)["config"], "eos_token_id": end}
    ids = Tensor(np.int32([[1, 5, 9, 119, 119], [3, 9, 9, 2, 2]]))
    states, pooled = CLIPTextModel(**config)(ids)
    assert (pooled.asnumpy() == states.asnumpy()[[0, 1], expected]).all()


def test_full_clip_checkpoint_loads(tmp_path):
    """Its config.json has that of the text encoder in `text_config`; older files hold the positions' numbers."""
    model = build(TINY, HPCAITECH_V1_CASES)
    unrelated = ("vision_model.x", "visual_projection.weight", "text_projection.weight", "logit_scale")
    unrelated += ("text_model.embeddings.position_ids",)
    state = {**model.torch_state(), **{name: np.ones((1, 3), np.float32) for name in unrelated}}
    write_safetensors(tmp_path / "model.safetensors", {name: ArrayTensor(value) for name, value in state.items()})
    text_config = {**case(TINY, HPCAITECH_V1_CASES)["config"], "top_k": 50}
    config = {"architectures": ["CLIPModel"], "model_type": "clip", "text_config": text_config, "projection_dim": 32}
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = CLIPTextModel.from_pretrained(tmp_path)
    assert loaded.config == model.config and loaded.config.end_token is None
    loaded.save_pretrained(tmp_path / "again")
    again = CLIPTextModel.from_pretrained(tmp_path / "again", streamed=True)
    expected = model(ids_of(TINY))
    for other in (loaded, again):
        assert all((a.asnumpy() == b.asnumpy()).all() for a, b in zip(other(ids_of(TINY)), expected))


def test_unsupported_inputs_are_rejected(mode):
    config = case(TINY, HPCAITECH_V1_CASES)["config"]
    with pytest.raises(ValueError, match="78 tokens, but the model has positions for 77"):
        CLIPTextModel(**config)(Tensor(np.zeros((1, 78), np.int32)))
    with pytest.raises(ValueError, match="hidden_act 'relu' is not one of"):
        CLIPTextModel.without_weights(**{**config, "hidden_act": "relu"})
    with pytest.raises(ValueError, match="hidden_size 50 is not a multiple of num_attention_heads 4"):
        CLIPTextModel.without_weights(**{**config, "hidden_size": 50})
