"""OpenAI's names of CLIP's weights (github.com/openai/CLIP, model.py) as those of transformers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from opensora.checkpoint.lazy_tensor import ArrayTensor, LazyTensor
from opensora.models.text_encoder.clip_config import UNSPECIFIC_END_TOKEN

MARK = "visual.conv1.weight"  # only OpenAI's files have it
SCALARS = ("input_resolution", "context_length", "vocab_size")  # of the archive, not weights
HEAD_WIDTH = 64
NAMES = {
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "logit_scale": "logit_scale",
}
TRANSPOSED = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}
NORMS = {
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
    "ln_final": "text_model.final_layer_norm",
}
BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)")
IN_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
STACKED = "attn.in_proj_"  # weight or bias of queries, keys and values


def canonical_state(state: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """The state with transformers' names; unknown names stay."""
    renamed: dict[str, LazyTensor] = {}
    for name, tensor in state.items():
        module, _, kind = name.rpartition(".")
        block = BLOCK.fullmatch(name)
        if name in TRANSPOSED:
            renamed[TRANSPOSED[name]] = ArrayTensor(np.ascontiguousarray(tensor.numpy().T))
        elif module in NORMS:
            renamed[f"{NORMS[module]}.{kind}"] = tensor
        elif block is not None:
            visual, index, rest = block.groups()
            layer = f"{'vision' if visual else 'text'}_model.encoder.layers.{index}"
            renamed.update(_in_block(layer, rest, tensor))
        else:
            renamed[NAMES.get(name, name)] = tensor
    return renamed


def _in_block(layer: str, name: str, tensor: LazyTensor) -> dict[str, LazyTensor]:
    module, _, kind = name.rpartition(".")
    if name.startswith(STACKED):
        parts = np.split(tensor.numpy(), 3)
        return {f"{layer}.self_attn.{q}_proj.{name[len(STACKED) :]}": ArrayTensor(x) for q, x in zip("qkv", parts)}
    return {f"{layer}.{IN_BLOCK.get(module, module)}.{kind}": tensor}


def published_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    """OpenAI's arguments of a model as the keys of transformers' config.json."""
    return {
        "projection_dim": values["embed_dim"],
        "text_config": {
            "vocab_size": values["vocab_size"],
            "hidden_size": values["transformer_width"],
            "intermediate_size": 4 * values["transformer_width"],
            "num_hidden_layers": values["transformer_layers"],
            "num_attention_heads": values["transformer_heads"],
            "max_position_embeddings": values["context_length"],
            "eos_token_id": UNSPECIFIC_END_TOKEN,
        },
        "vision_config": {
            "hidden_size": values["vision_width"],
            "intermediate_size": 4 * values["vision_width"],
            "num_hidden_layers": values["vision_layers"],
            "num_attention_heads": values["vision_width"] // HEAD_WIDTH,
            "image_size": values["image_resolution"],
            "patch_size": values["vision_patch_size"],
        },
    }


def config_of(state: Mapping[str, LazyTensor]) -> dict[str, Any]:
    """The configuration of a model of OpenAI, from the shapes of its tensors.

    Raises:
        KeyError: a tensor is missing.
    """
    vision_width, _, patch, _ = state[MARK].shape
    side = round((state["visual.positional_embedding"].shape[0] - 1) ** 0.5)
    width = state["ln_final.weight"].shape[0]
    layers = {"visual.": 0, None: 0}
    for block in filter(None, map(BLOCK.fullmatch, state)):
        layers[block[1]] = max(layers[block[1]], int(block[2]) + 1)
    return published_keys(
        {
            "embed_dim": state["text_projection"].shape[1],
            "image_resolution": side * patch,
            "vision_layers": layers["visual."],
            "vision_width": vision_width,
            "vision_patch_size": patch,
            "context_length": state["positional_embedding"].shape[0],
            "vocab_size": state["token_embedding.weight"].shape[0],
            "transformer_width": width,
            "transformer_heads": width // HEAD_WIDTH,
            "transformer_layers": layers[None],
        }
    )
