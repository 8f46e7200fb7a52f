"""Checks that weights and a config.json belong together, without building the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional, Union

from opensora.checkpoint.lazy_tensor import LazyTensor
from opensora.errors import UserError


class ExpectedDim(NamedTuple):
    """The size of a tensor's axis, as a function of the config; `keys` names the keys for errors."""

    tensor: str
    axis: int
    keys: str
    expected: Callable[[Mapping[str, Any]], int]


class ArchSpec(NamedTuple):
    """The checked sizes of an architecture; `layers` is the name prefix of its layers, whose number is a key."""

    sizes: tuple[ExpectedDim, ...]
    layers: Optional[str] = None
    layers_key: str = "num_layers"


WFVAE = ArchSpec(
    sizes=(
        ExpectedDim("encoder.conv_out.conv.weight", 0, "latent_dim", lambda c: 2 * c.get("latent_dim", 8)),
        ExpectedDim("decoder.conv_in.conv.weight", 1, "latent_dim", lambda c: c.get("latent_dim", 8)),
        ExpectedDim("encoder.down1.0.weight", 0, "base_channels", lambda c: c.get("base_channels", 128)),
        ExpectedDim(
            "encoder.connect_l1.weight",
            0,
            "encoder_energy_flow_hidden_size",
            lambda c: c.get("encoder_energy_flow_hidden_size", 64),
        ),
        ExpectedDim(
            "decoder.connect_l2.0.conv1.conv.weight",
            0,
            "decoder_energy_flow_hidden_size",
            lambda c: c.get("decoder_energy_flow_hidden_size", 128),
        ),
    )
)
CAUSAL_VAE = ArchSpec(
    sizes=(
        ExpectedDim("encoder.conv_out.conv.weight", 0, "z_channels", lambda c: 2 * c.get("z_channels", 4)),
        ExpectedDim("quant_conv.conv.weight", 0, "embed_dim", lambda c: 2 * c.get("embed_dim", 4)),
        ExpectedDim(
            "decoder.norm_out.weight",
            0,
            "hidden_size * hidden_size_mult[0]",
            lambda c: c.get("hidden_size", 128) * c.get("hidden_size_mult", [1])[0],
        ),
        ExpectedDim(
            "encoder.norm_out.weight",
            0,
            "hidden_size * hidden_size_mult[-1]",
            lambda c: c.get("hidden_size", 128) * c.get("hidden_size_mult", [4])[-1],
        ),
    )
)
OPENSORA = ArchSpec(
    sizes=(
        ExpectedDim(
            "pos_embed.proj.weight",
            0,
            "num_attention_heads * attention_head_dim",
            lambda c: c["num_attention_heads"] * c["attention_head_dim"],
        ),
        ExpectedDim("pos_embed.proj.weight", 1, "in_channels", lambda c: c["in_channels"]),
        ExpectedDim("caption_projection.linear_1.weight", 1, "caption_channels", lambda c: c["caption_channels"]),
    ),
    layers="transformer_blocks.",
)
T5 = ArchSpec(
    sizes=(
        ExpectedDim("shared.weight", 0, "vocab_size", lambda c: c["vocab_size"]),
        ExpectedDim("shared.weight", 1, "d_model", lambda c: c["d_model"]),
        ExpectedDim(
            "encoder.block.0.layer.0.SelfAttention.q.weight",
            0,
            "num_heads * d_kv",
            lambda c: c["num_heads"] * c["d_kv"],
        ),
        ExpectedDim("encoder.block.0.layer.1.DenseReluDense.wo.weight", 1, "d_ff", lambda c: c["d_ff"]),
    ),
    layers="encoder.block.",
)
# The transformers of Open-Sora v1.0 and v1.1; those conditioned on classes have no caption_channels.
_HPCAITECH_SIZES = (
    ExpectedDim("x_embedder.proj.weight", 0, "hidden_size", lambda c: c.get("hidden_size", 1152)),
    ExpectedDim("x_embedder.proj.weight", 1, "in_channels", lambda c: c.get("in_channels", 4)),
)
DIT = ArchSpec(_HPCAITECH_SIZES, "blocks.", "depth")
STDIT = DIT._replace(
    sizes=(
        *_HPCAITECH_SIZES,
        ExpectedDim("y_embedder.y_proj.fc1.weight", 1, "caption_channels", lambda c: c.get("caption_channels", 4096)),
    )
)

# Descriptions, in errors, of models of other projects and versions.
OTHER_MODELS = {
    "CausalVAEModel": "the autoencoder of Open-Sora-Plan v1.0 to v1.2",
    "LatteT2V": "the transformer of Open-Sora-Plan v1.0 and v1.1",
    "OpenSoraT2V": "the transformer of Open-Sora-Plan v1.2",
    "AutoencoderKL": "the image autoencoder of Stable Diffusion",
    "STDiT": "the transformer of Open-Sora v1.0",
    "STDiT2": "the transformer of Open-Sora v1.1",
}
# Keys that identify a config.json without a class name; the first entry whose keys are all present applies.
IDENTIFYING_KEYS = {
    "WFVAEModel": ("base_channels", "latent_dim"),
    "CausalVAEModel": ("hidden_size_mult", "z_channels"),
    "LatteT2V": ("video_length", "caption_channels"),
    "OpenSoraInpaint_v1_3": ("sparse1d", "vae_scale_factor_t"),
    "OpenSoraT2V_v1_3": ("sparse1d", "caption_channels"),
    "OpenSoraT2V": ("attention_mode", "caption_channels"),
    "STDiT2": ("input_sq_size", "depth"),
    "AutoencoderKL": ("block_out_channels", "latent_channels"),
    "t5": ("d_model", "d_kv", "d_ff"),
}


def published_class(config: Mapping[str, Any]) -> Optional[str]:
    """The class of a config.json, as diffusers or transformers name it; None if unknown."""
    named = config.get("_class_name") or config.get("model_type") or (config.get("architectures") or [None])[0]
    if isinstance(named, str):
        return named
    return next((kind for kind, keys in IDENTIFYING_KEYS.items() if all(key in config for key in keys)), None)


def check_class(config: Mapping[str, Any], folder: Union[str, Path], expected: Sequence[str], flag: str = "") -> None:
    """Raises UserError if a config.json is for a class that is not one of `expected`.

    Args:
        config: the content of the config.json.
        folder: its folder, for the error message.
        expected: accepted class names; the first is shown.
        flag: the command-line flag that gives the folder, if any.
    """
    kind = published_class(config)
    if kind is None or kind in expected:
        return
    meaning = f" ({OTHER_MODELS[kind]})" if kind in OTHER_MODELS else ""
    raise UserError(
        f"{folder}: holds {_with_article(kind[:80])}{meaning}; "
        f"{flag + ' needs' if flag else 'expected'} {_with_article(expected[0])}"
    )


def _with_article(name: str) -> str:
    """A class name with its article: an OpenSoraT2V_v1_3, a WFVAEModel, an STDiT2."""
    return f"{'an' if name.startswith(('A', 'E', 'I', 'O', 'U', 'ST', 'MT', 'mt')) else 'a'} {name}"


# By the class name in this project.
ARCH_SPECS = {
    "WFVAEModel": WFVAE,
    "CausalVAEModel": CAUSAL_VAE,
    "OpenSoraT2V_v1_3": OPENSORA,
    "OpenSoraInpaint_v1_3": OPENSORA,
    "OpenSoraT2V": OPENSORA,
    "LatteT2V": OPENSORA,
    "MT5EncoderModel": T5,
    "STDiT": STDIT,
    "STDiT2": STDIT,
    "PixArt": STDIT,
    "PixArtMS": STDIT,
    "DiT": DIT,
    "Latte": DIT,
}
OTHER_NAMES = {"shared.weight": "encoder.embed_tokens.weight"}  # of tied weights, which files may have under one name
MODEL_TYPES = {"mt5": "MT5EncoderModel", "t5": "MT5EncoderModel"}  # names that transformers writes


def class_name(config: Mapping[str, Any], config_path: Union[str, Path]) -> str:
    """The class in this project for a config.json. Raises UserError if it is not in `ARCH_SPECS`."""
    published = published_class(config) or ""
    name = MODEL_TYPES.get(published, published)
    if name not in ARCH_SPECS:
        raise UserError(
            f"{config_path}: the config of {published!r}; known are {', '.join([*ARCH_SPECS, *MODEL_TYPES])}"
        )
    return name


def check_shapes(
    state: Mapping[str, LazyTensor], src: Union[str, Path], config: Mapping[str, Any], config_path: Union[str, Path]
) -> None:
    """Raises UserError, naming the key, if the tensors of `state`, from `src`, do not match the config."""
    spec = ARCH_SPECS[class_name(config, config_path)]
    for tensor, axis, keys, expected in spec.sizes:
        tensor = tensor if tensor in state else OTHER_NAMES.get(tensor, tensor)
        if tensor not in state:
            raise UserError(f"{src}: has no tensor {tensor!r}, so it is not the model of {config_path}")
        try:
            size = expected(config)
        except KeyError as error:
            raise UserError(f"{config_path}: has no key {error}") from error
        shape = tuple(state[tensor].shape)
        if shape[axis : axis + 1] != (size,):
            raise UserError(f"{config_path}: {keys} gives {size!r}, but {tensor} in {src} has the shape {shape}")
    if spec.layers:
        count = len({name[len(spec.layers) :].split(".")[0] for name in state if name.startswith(spec.layers)})
        if count != config.get(spec.layers_key):
            raise UserError(
                f"{config_path}: {spec.layers_key} is {config.get(spec.layers_key)!r}, but {src} has {count} layers"
            )
