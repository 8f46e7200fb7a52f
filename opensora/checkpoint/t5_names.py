"""Names of T5's tensors in GGUF files, and their names in torch files."""

from __future__ import annotations

import re

ARCHITECTURES = ("t5encoder", "t5")  # general.architecture; the first one is written
_WHOLE = {
    "token_embd.weight": "shared.weight",
    "enc.output_norm.weight": "encoder.final_layer_norm.weight",
    "output.weight": "lm_head.weight",
}
_IN_BLOCK = {
    **{f"attn_{name}": f"layer.0.SelfAttention.{name}" for name in "qkvo"},
    "attn_rel_b": "layer.0.SelfAttention.relative_attention_bias",
    "attn_norm": "layer.0.layer_norm",
    "ffn_gate": "layer.1.DenseReluDense.wi_0",
    "ffn_up": "layer.1.DenseReluDense.wi_1",
    "ffn_down": "layer.1.DenseReluDense.wo",
    "ffn_norm": "layer.1.layer_norm",
}
_TORCH_WHOLE = {torch: gguf for gguf, torch in _WHOLE.items()}
_TORCH_IN_BLOCK = {torch: gguf for gguf, torch in _IN_BLOCK.items()}


def torch_name(name: str) -> str:
    """The torch name of a tensor of a GGUF file. Names of the decoder only get the prefix `decoder.`."""
    match = re.fullmatch(r"enc\.blk\.(\d+)\.(\w+)\.weight", name)
    if match and match[2] in _IN_BLOCK:
        return f"encoder.block.{match[1]}.{_IN_BLOCK[match[2]]}.weight"
    return _WHOLE.get(name) or re.sub(r"^dec\.", "decoder.", name)


def gguf_name(name: str) -> str:
    """The inverse of `torch_name` for the encoder's tensors; other names stay."""
    match = re.fullmatch(r"encoder\.block\.(\d+)\.(.+)\.weight", name)
    if match and match[2] in _TORCH_IN_BLOCK:
        return f"enc.blk.{match[1]}.{_TORCH_IN_BLOCK[match[2]]}.weight"
    return _TORCH_WHOLE.get(name, name)
