"""Tiny models with random weights, and release folders made of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import mindspore as ms
import numpy as np
import sentencepiece
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch_files import as_tensors, save_zip

from opensora.checkpoint.formats.safetensors import write_safetensors
from opensora.checkpoint.lazy_tensor import ArrayTensor
from opensora.models import CausalVAEModel, LatteT2V, MT5EncoderModel, OpenSoraT2V, OpenSoraT2V_v1_3, WFVAEModel

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
_OLDER = dict(num_attention_heads=4, attention_head_dim=24, num_layers=3, cross_attention_dim=96, caption_channels=32)
OPENSORA_V1_2 = dict(**_OLDER, sample_size=[8, 8], sample_size_t=2, use_rope=True)
LATTE = dict(**_OLDER, sample_size=[8, 8], video_length=2, use_rope=False)
TEXT = dict(vocab_size=300, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu")
# CausalVAE of each generation, with its layers and tiny widths.
_CAUSAL_VAE = dict(hidden_size=32, hidden_size_mult=[1, 1, 1, 1], num_res_blocks=1)
_CAUSAL_VAE_FIX = dict(
    encoder_conv_in="Conv2d",
    encoder_resnet_blocks=["ResnetBlock2D", "ResnetBlock2D", "ResnetBlock3D", "ResnetBlock3D"],
    encoder_attention="AttnBlock3DFix",
    decoder_attention="AttnBlock3DFix",
)
CAUSAL_VAE = {
    "v1.0": {**_CAUSAL_VAE, "encoder_temporal_downsample": ["TimeDownsample2x", "TimeDownsample2x", "", ""]},
    "v1.1": {
        **_CAUSAL_VAE,
        **_CAUSAL_VAE_FIX,
        "encoder_spatial_downsample": ["Downsample", "Downsample", "Downsample", ""],
        "encoder_temporal_downsample": ["", "TimeDownsampleRes2x", "TimeDownsampleRes2x", ""],
        "decoder_temporal_upsample": ["", "", "TimeUpsampleRes2x", "TimeUpsampleRes2x"],
    },
    "v1.2": {
        **_CAUSAL_VAE,
        **_CAUSAL_VAE_FIX,
        "encoder_spatial_downsample": ["Downsample", *["Spatial2xTime2x3DDownsample"] * 2, ""],
        "encoder_temporal_downsample": [""] * 4,
        "decoder_spatial_upsample": ["", "SpatialUpsample2x", *["Spatial2xTime2x3DUpsample"] * 2],
        "decoder_temporal_upsample": [""] * 4,
    },
}


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
    tokens = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    write_json(folder / "text/tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast", **tokens)
    return folder


def make_older_release(folder: Path) -> Path:
    """As `make_release`, with the folders `transformer_v1_1` and `transformer_v1_2`, `vae_v1_1` and `vae_v1_2`, too."""
    make_release(folder)
    LatteT2V(**LATTE).save_pretrained(folder / "transformer_v1_1")
    OpenSoraT2V(**OPENSORA_V1_2).save_pretrained(folder / "transformer_v1_2")
    for generation in ("v1.1", "v1.2"):
        vae = CausalVAEModel(**CAUSAL_VAE[generation])
        vae.save_pretrained(folder / f"vae_{generation.replace('.', '_')}")
    return folder


def make_published_release(folder: Path) -> Path:
    """Folders `any93x640x640`, `vae` and `mt5-xxl` with the file formats and config.json keys of the published weights.

    Sharded safetensors; a training checkpoint with EMA and plain weights; a torch file that also has a decoder, and a
    sentencepiece model.
    """
    ms.set_seed(3)
    transformer, vae, text = (folder / name for name in ("any93x640x640", "vae", "mt5-xxl"))
    write_shards(transformer, OpenSoraT2V_v1_3(**DIT).torch_state(), 3)
    write_json(transformer / "config.json", _class_name="OpenSoraT2V_v1_3", _diffusers_version="0.30.2", **DIT)
    save_vae_checkpoint(vae, WFVAEModel(**VAE).torch_state())
    text.mkdir(parents=True)
    state = MT5EncoderModel(**TEXT).torch_state()
    decoder = {"decoder.final_layer_norm.weight": np.ones(32, np.float32), "lm_head.weight": state["shared.weight"]}
    save_zip(text / "pytorch_model.bin", as_tensors({**state, **decoder}))
    names = {"architectures": ["MT5ForConditionalGeneration"], "model_type": "mt5"}
    write_json(text / "config.json", num_decoder_layers=2, **names, **TEXT)
    sentences = ["A red circle moves right on a blue background", "A green square moves left on a white background"]
    train_sentencepiece(text, sentences, 30)
    tokens = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    write_json(text / "tokenizer_config.json", tokenizer_class="T5Tokenizer", extra_ids=0, legacy=True, **tokens)
    return folder


def save_vae_checkpoint(folder: Path, ema: Mapping[str, np.ndarray]) -> None:
    """merged.ckpt, in which the plain weights are the EMA weights plus 1, and config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = {name: value if "wavelet" in name else value + 1 for name, value in ema.items()}
    states = {
        "ema_state_dict": {f"module.{name}": value for name, value in as_tensors(ema).items()},
        "state_dict": {"gen_model": as_tensors(plain)},
    }
    save_zip(folder / "merged.ckpt", states)
    write_json(folder / "config.json", _class_name="WFVAEModel", **VAE)


def write_shards(folder: Path, state: Mapping[str, np.ndarray], count: int) -> None:
    """`count` safetensors shards and their index."""
    index = {"metadata": {}, "weight_map": {}}
    for i in range(count):
        shard = f"diffusion_pytorch_model-{i + 1:05d}-of-{count:05d}.safetensors"
        names = sorted(state)[i::count]
        write_safetensors(folder / shard, {name: ArrayTensor(state[name]) for name in names})
        index["weight_map"].update(dict.fromkeys(names, shard))
    write_json(folder / "diffusion_pytorch_model.safetensors.index.json", **index)


def train_sentencepiece(folder: Path, sentences: list[str], vocab_size: int) -> Path:
    """spiece.model, with the special tokens of T5."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_prefix=str(folder / "spiece"),
        model_type="unigram",
        vocab_size=vocab_size,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    (folder / "spiece.vocab").unlink()
    return folder / "spiece.model"


def write_json(path: Path, **content) -> None:
    path.write_text(json.dumps(content))
