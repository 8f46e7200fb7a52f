"""Sizes that tell whether weights and a config.json belong together, checked without building the model."""
from __future__ import annotations

from pathlib import Path
from typing import Any, Mapping, Union

# For each kind of model: (tensor, axis, what the config says of it, how the size follows from the config).
WFVAE = (
    ("encoder.conv_out.conv.weight", 0, "latent_dim", lambda c: 2 * c.get("latent_dim", 8)),
    ("decoder.conv_in.conv.weight", 1, "latent_dim", lambda c: c.get("latent_dim", 8)),
    ("encoder.down1.0.weight", 0, "base_channels", lambda c: c.get("base_channels", 128)),
    ("encoder.connect_l1.weight", 0, "encoder_energy_flow_hidden_size",
     lambda c: c.get("encoder_energy_flow_hidden_size", 64)),
    ("decoder.connect_l2.0.conv1.conv.weight", 0, "decoder_energy_flow_hidden_size",
     lambda c: c.get("decoder_energy_flow_hidden_size", 128)),
)
T5 = (
    ("shared.weight", 0, "vocab_size", lambda c: c["vocab_size"]),
    ("shared.weight", 1, "d_model", lambda c: c["d_model"]),
    ("encoder.block.0.layer.0.SelfAttention.q.weight", 0, "num_heads * d_kv", lambda c: c["num_heads"] * c["d_kv"]),
    ("encoder.block.0.layer.1.DenseReluDense.wo.weight", 1, "d_ff", lambda c: c["d_ff"]),
)
OPENSORA = (
    ("pos_embed.proj.weight", 0, "num_attention_heads * attention_head_dim",
     lambda c: c["num_attention_heads"] * c["attention_head_dim"]),
    ("pos_embed.proj.weight", 1, "in_channels", lambda c: c["in_channels"]),
    ("caption_projection.linear_1.weight", 1, "caption_channels", lambda c: c["caption_channels"]),
)
KINDS = {"WFVAEModel": WFVAE, "mt5": T5, "t5": T5, "OpenSoraT2V_v1_3": OPENSORA, "OpenSoraInpaint_v1_3": OPENSORA}
LAYERS = {"mt5": ("encoder.block.", "num_layers"), "t5": ("encoder.block.", "num_layers"),
          "OpenSoraT2V_v1_3": ("transformer_blocks.", "num_layers"),
          "OpenSoraInpaint_v1_3": ("transformer_blocks.", "num_layers")}


def check_shapes(state: Mapping[str, Any], config: Mapping[str, Any], config_path: Union[str, Path]) -> None:
    """Raises ValueError, naming the key, if the tensors of `state` are not those of a model with this config."""
    kind = config.get("_class_name") or config.get("model_type")
    if kind not in KINDS:
        raise ValueError(f"{config_path}: the config of a {kind!r}; known are {', '.join(KINDS)}")
    for name, axis, key, size in KINDS[kind]:
        if name not in state:
            raise ValueError(f"the weights have no {name!r}: they are not those of a {kind}, which {config_path} describes")
        try:
            expected = size(config)
        except KeyError as error:
            raise ValueError(f"{config_path}: has no key {error}") from error
        if state[name].shape[axis] != expected:
            raise ValueError(f"{config_path}: {key} is {expected}, but {name} in the weights has the shape "
                             f"{tuple(state[name].shape)}")
    if kind in LAYERS:
        prefix, key = LAYERS[kind]
        count = len({name[len(prefix):].split(".")[0] for name in state if name.startswith(prefix)})
        if count != config.get(key):
            raise ValueError(f"{config_path}: {key} is {config.get(key)}, but the weights have {count} layers")
