"""The diffusion transformer: outputs against the reference, and the invariants of its optimizations."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from golden_cases import case_names, relative_difference
from golden_models import build, dit_rows
from mindspore import Tensor

from opensora.models import OpenSoraT2V_v1_3
from opensora.models.dit.skiparse import Skiparse
from opensora.ops import attention as attention_module
from opensora.ops.attention import attention, mask_to_bias
from opensora.ops.cpu import custom_op


def random(*shape, seed=0) -> Tensor:
    return Tensor(np.random.RandomState(seed).standard_normal(shape), ms.float32)


@pytest.mark.parametrize("mode", [1, 0], ids=["pynative", "graph"], indirect=True)
@pytest.mark.parametrize("name", case_names("dit_"))  # consecutive modes of a case share its model
def test_output_matches_reference(name, mode):
    rows = dit_rows(name)
    assert max(rows.values()) < 1e-4, rows


@pytest.mark.parametrize("group_skip", [False, True])
@pytest.mark.parametrize("length", [16, 32, 37])
def test_skiparse_merge_inverts_split(group_skip, length):
    skip = Skiparse(4, group_skip)
    x = np.arange(2 * length * 3).reshape(2, length, 3).astype(np.float32)
    groups = skip.split(Tensor(x)).asnumpy()
    padded = np.pad(x, ((0, 0), (0, -length % 16), (0, 0)))
    for j in range(4):
        expected = padded[0, j::4] if not group_skip else padded[0].reshape(-1, 4, 3)[j::4].reshape(-1, 3)
        assert (groups[j] == expected).all()
    assert (skip.merge(Tensor(groups), length).asnumpy() == x).all()


def test_blockwise_attention_equals_whole(monkeypatch):
    monkeypatch.setattr(custom_op, "library", lambda: None)
    q, k, v = random(2, 50, 3, 8), random(2, 20, 3, 8, seed=1), random(2, 20, 3, 8, seed=2)
    attn_bias = mask_to_bias(Tensor((np.arange(20) < [[20], [7]]).astype(np.float32)))
    whole = attention(q, k, v, attn_bias).asnumpy()
    scores = np.einsum("bsnd,blnd->bnsl", q.asnumpy(), k.asnumpy()) / np.sqrt(8) + attn_bias.asnumpy()
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    expected = np.einsum("bnsl,blnd->bsnd", weights / weights.sum(-1, keepdims=True), v.asnumpy())
    assert relative_difference(whole, expected) < 1e-5
    monkeypatch.setattr(attention_module, "SCORES_PER_BLOCK", 1000)
    assert relative_difference(attention(q, k, v, attn_bias).asnumpy(), whole) < 1e-6


def test_precomputed_text_states_give_the_same_output():
    model = build("dit_tiny")
    latents, text = random(1, 8, 2, 8, 8), random(1, 1, 6, 64)
    timestep = Tensor([500])
    direct = model(latents, timestep, text).asnumpy()
    states = model.text_states(text)
    assert (model(latents, timestep, None, text_states=states).asnumpy() == direct).all()


def test_text_padding_does_not_change_the_output():
    model = build("dit_tiny")
    latents, text = random(1, 8, 2, 8, 8), random(1, 1, 12, 64)
    mask = Tensor((np.arange(12) < 5).astype(np.float32).reshape(1, 1, 12))
    padded = model(latents, Tensor([500]), text, None, mask).asnumpy()
    assert relative_difference(model(latents, Tensor([500]), text[:, :, :5]).asnumpy(), padded) < 1e-5


def test_full_mask_equals_no_mask():
    model = build("dit_tiny")
    latents, text = random(1, 8, 3, 10, 10), random(1, 1, 6, 64)
    masked = model(latents, Tensor([500]), text, Tensor(np.ones((1, 3, 10, 10), np.float32)))
    assert relative_difference(model(latents, Tensor([500]), text).asnumpy(), masked.asnumpy()) < 1e-5


@pytest.mark.parametrize(
    "config, message",
    [({"activation_fn": "geglu"}, "geglu"), ({"num_layer": 2}, "num_layers"), ({"patch_size_t": 2}, "patch_size_t")],
)
def test_invalid_config_is_rejected(config, message):
    with pytest.raises(ValueError, match=message):
        OpenSoraT2V_v1_3(**config)
