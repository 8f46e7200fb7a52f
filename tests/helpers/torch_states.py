"""State dicts of tiny models."""

from __future__ import annotations

import numpy as np
from torch_files import tensor

TINY_VAE = dict(
    base_channels=8,
    encoder_num_resblocks=1,
    encoder_energy_flow_hidden_size=8,
    decoder_num_resblocks=1,
    decoder_energy_flow_hidden_size=8,
    norm_type="layernorm",
    t_interpolation="trilinear",
)


TINY_T5 = dict(vocab_size=20, d_model=8, d_kv=4, d_ff=16, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu")


def same(a: dict, b: dict) -> bool:
    return set(a) == set(b) and all((a[key] == b[key]).all() for key in a)


def as_tensors(state: dict) -> dict:
    return {key: tensor(np.ascontiguousarray(value)) for key, value in state.items()}
