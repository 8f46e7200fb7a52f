"""Sizes that tell whether weights and a config.json belong together, checked without building the model."""
from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Mapping, NamedTuple, Optional, Union

from opensora.models.tensor_file import StoredTensor


class Size(NamedTuple):
    """That of a tensor's axis, the config's keys it comes from, and how."""

    tensor: str
    axis: int
    keys: str
    expected: Callable[[Mapping[str, Any]], int]


class Kind(NamedTuple):
    """A kind of model. `layers` is the prefix of the names of its `num_layers` layers."""

    sizes: tuple
    layers: Optional[str] = None


WFVAE = Kind(sizes=(
    Size("encoder.conv_out.conv.weight", 0, "latent_dim", lambda c: 2 * c.get("latent_dim", 8)),
    Size("decoder.conv_in.conv.weight", 1, "latent_dim", lambda c: c.get("latent_dim", 8)),
    Size("encoder.down1.0.weight", 0, "base_channels", lambda c: c.get("base_channels", 128)),
    Size("encoder.connect_l1.weight", 0, "encoder_energy_flow_hidden_size",
         lambda c: c.get("encoder_energy_flow_hidden_size", 64)),
    Size("decoder.connect_l2.0.conv1.conv.weight", 0, "decoder_energy_flow_hidden_size",
         lambda c: c.get("decoder_energy_flow_hidden_size", 128)),
))
OPENSORA = Kind(sizes=(
    Size("pos_embed.proj.weight", 0, "num_attention_heads * attention_head_dim",
         lambda c: c["num_attention_heads"] * c["attention_head_dim"]),
    Size("pos_embed.proj.weight", 1, "in_channels", lambda c: c["in_channels"]),
    Size("caption_projection.linear_1.weight", 1, "caption_channels", lambda c: c["caption_channels"]),
), layers="transformer_blocks.")
T5 = Kind(sizes=(
    Size("shared.weight", 0, "vocab_size", lambda c: c["vocab_size"]),
    Size("shared.weight", 1, "d_model", lambda c: c["d_model"]),
    Size("encoder.block.0.layer.0.SelfAttention.q.weight", 0, "num_heads * d_kv",
         lambda c: c["num_heads"] * c["d_kv"]),
    Size("encoder.block.0.layer.1.DenseReluDense.wo.weight", 1, "d_ff", lambda c: c["d_ff"]),
), layers="encoder.block.")

# By the class of this project.
KINDS = {"WFVAEModel": WFVAE, "OpenSoraT2V_v1_3": OPENSORA, "OpenSoraInpaint_v1_3": OPENSORA, "MT5EncoderModel": T5}
MODEL_TYPES = {"mt5": "MT5EncoderModel", "t5": "MT5EncoderModel"}  # what transformers writes


def class_name(config: Mapping[str, Any], config_path: Union[str, Path]) -> str:
    """The class that a config.json is for. Raises ValueError if it is none of `KINDS`."""
    published = config.get("_class_name") or config.get("model_type")
    name = MODEL_TYPES.get(published, published)
    if name not in KINDS:
        raise ValueError(f"{config_path}: the config of {published!r}; known are {', '.join([*KINDS, *MODEL_TYPES])}")
    return name


def check_shapes(state: Mapping[str, StoredTensor], src: Union[str, Path],
                 config: Mapping[str, Any], config_path: Union[str, Path]) -> None:
    """Raises ValueError, naming the key, if the tensors of `state`, from `src`, are not those of this config."""
    kind = KINDS[class_name(config, config_path)]
    for tensor, axis, keys, expected in kind.sizes:
        if tensor not in state:
            raise ValueError(f"{src}: has no {tensor!r}, so it does not hold the model that {config_path} describes")
        try:
            size = expected(config)
        except KeyError as error:
            raise ValueError(f"{config_path}: has no key {error}") from error
        shape = tuple(state[tensor].shape)
        if shape[axis:axis + 1] != (size,):
            raise ValueError(f"{config_path}: {keys} gives {size!r}, but {tensor} in {src} has the shape {shape}")
    if kind.layers:
        count = len({name[len(kind.layers):].split(".")[0] for name in state if name.startswith(kind.layers)})
        if count != config.get("num_layers"):
            raise ValueError(f"{config_path}: num_layers is {config.get('num_layers')!r}, but {src} has {count} layers")
