"""A release of tiny models whose weights follow from their names, the same on every machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from opensora.models import MT5EncoderModel, OpenSoraT2V_v1_3, WFVAEModel
from opensora.models.pretrained import PretrainedModel

VAE: Mapping[str, Any] = {
    "base_channels": 8,
    "encoder_num_resblocks": 1,
    "encoder_energy_flow_hidden_size": 8,
    "decoder_num_resblocks": 1,
    "decoder_energy_flow_hidden_size": 8,
    "norm_type": "layernorm",
    "t_interpolation": "trilinear",
}
# The head dimension is a multiple of 16, for FlashAttentionScore, and of 6, for RoPE. Blocks from the third are sparse.
DIT: Mapping[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 48,
    "in_channels": 8,
    "out_channels": 8,
    "num_layers": 4,
    "cross_attention_dim": 96,
    "caption_channels": 32,
    "sparse1d": True,
    "sparse_n": 2,
}
TEXT: Mapping[str, Any] = {
    "vocab_size": 300,
    "d_model": 32,
    "d_kv": 16,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 2,
    "feed_forward_proj": "gated-gelu",
    "model_type": "mt5",
}


def make_release(folder: Path) -> None:
    """Writes the folders `transformer`, `vae` and `text`, the last with a tokenizer of single bytes."""
    with_weights(OpenSoraT2V_v1_3(**DIT)).save_pretrained(folder / "transformer")
    with_weights(WFVAEModel(**VAE)).save_pretrained(folder / "vae")
    write_text_encoder(folder / "text")


def write_text_encoder(folder: Path) -> Path:
    """Writes a text encoder with a tokenizer of single bytes; returns the folder."""
    with_weights(MT5EncoderModel(**TEXT)).save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    vocabulary = {name: number for number, name in enumerate([*special.values(), *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def with_weights(model: PretrainedModel) -> PretrainedModel:
    """The model with weights of variance 1 / fan-in, biases of 0.1 N(0, 1), and scales of norms near 1."""
    state = {}
    for name, parameter in model.own_parameters().items():
        value = np.random.default_rng(crc32(name.encode())).standard_normal(parameter.shape)
        is_matrix = value.ndim > 1
        fan_in = value[0].size if is_matrix else 1
        state[name] = value / np.sqrt(fan_in) if is_matrix else 0.1 * value + name.endswith("weight")
    model.load_torch_state({name: value.astype(np.float32) for name, value in state.items()})
    return model
