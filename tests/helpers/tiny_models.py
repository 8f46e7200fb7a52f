"""Tiny models with random weights in the published layout."""

from __future__ import annotations

import json
from pathlib import Path

import mindspore as ms
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from opensora.models import MT5EncoderModel, OpenSoraT2V_v1_3, WFVAEModel

VAE = dict(
    base_channels=8,
    encoder_num_resblocks=1,
    encoder_energy_flow_hidden_size=8,
    decoder_num_resblocks=1,
    decoder_energy_flow_hidden_size=8,
    norm_type="layernorm",
    t_interpolation="trilinear",
)
DIT = dict(
    num_attention_heads=4,
    attention_head_dim=24,
    in_channels=8,
    out_channels=8,
    num_layers=4,
    cross_attention_dim=96,
    sample_size_h=8,
    sample_size_w=8,
    sample_size_t=5,
    caption_channels=32,
    sparse1d=True,
    sparse_n=4,
)
TEXT = dict(vocab_size=300, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu")


def make_release(folder: Path) -> Path:
    """Folders `transformer`, `vae` and `text` with config.json and weights, and a tokenizer of single bytes."""
    ms.set_seed(3)
    OpenSoraT2V_v1_3(**DIT).save_pretrained(folder / "transformer")
    WFVAEModel(**VAE).save_pretrained(folder / "vae")
    MT5EncoderModel(**TEXT, model_type="mt5").save_pretrained(folder / "text")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2, **{letter: i + 3 for i, letter in enumerate(alphabet)}}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(folder / "text/tokenizer.json"))
    (folder / "text/tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "pad_token": "<pad>",
                "eos_token": "</s>",
                "unk_token": "<unk>",
            }
        )
    )
    return folder
