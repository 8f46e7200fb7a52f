"""Says what a file or folder of weights holds: class, generation, size, and what it is used with. Reads no values."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional, Union

from opensora.checkpoint.element_types import FLOATS
from opensora.checkpoint.files import find_weights, open_state, read_config, resolve_path
from opensora.checkpoint.lazy_tensor import LazyTensor
from opensora.checkpoint.lora.files import read_settings
from opensora.checkpoint.lora.names import FACTOR
from opensora.checkpoint.shape_check import MODEL_TYPES, published_class
from opensora.config.generations import generation_of, generation_of_autoencoder
from opensora.errors import UserError

DEPTH = 3  # of subfolders that are searched for models
MOST = 50  # models of one folder
Config = Mapping[str, Any]


class Kind(NamedTuple):
    """A class of models.

    Attributes:
        what: generation and task.
        partners: a config -> what the model is used with.
        command: how it is used, with {path} and {config} for the path and a config file.
        mark: a tensor that earlier kinds do not have; kinds are tried in order.
    """

    what: str
    partners: Callable[[Config], str]
    command: str
    mark: str = ""


def _transformer(channels: int, autoencoder: str, encoder: str, width: int) -> Callable[[Config], str]:
    def partners(config: Config) -> str:
        return (
            f"an autoencoder of {config.get('in_channels', channels)} latent channels ({autoencoder}), "
            f"a text encoder of {config.get('caption_channels', width)} channels ({encoder})"
        )

    return partners


def _autoencoder(default: int, key: str, models: str) -> Callable[[Config], str]:
    return lambda config: f"transformers of {config.get(key, default)} latent channels ({models})"


SAMPLE = "opensora sample {flag} {path} ..."
WITH_CONFIG = "opensora inference {config} --ckpt-path {path}"
KINDS = {
    "OpenSoraInpaint_v1_3": Kind(
        "Open-Sora-Plan v1.3, image to video and inpainting",
        _transformer(8, "WFVAEModel", "mT5-xxl", 4096),
        SAMPLE.replace("{flag}", "--model_type i2v --model_path"),
        "pos_embed_masked_hidden_states.0.proj.weight",
    ),
    "LatteT2V": Kind(
        "Open-Sora-Plan v1.0 or v1.1, text to video",
        _transformer(4, "CausalVAEModel", "T5 v1.1 xxl", 4096),
        SAMPLE.replace("{flag}", "--model_path"),
        "temporal_transformer_blocks.0.attn1.to_q.weight",
    ),
    "OpenSoraT2V_v1_3": Kind(
        "Open-Sora-Plan v1.3, text to video",
        _transformer(8, "WFVAEModel", "mT5-xxl", 4096),
        SAMPLE.replace("{flag}", "--model_path"),
    ),
    "OpenSoraT2V": Kind(
        "Open-Sora-Plan v1.2, text to video",
        _transformer(4, "CausalVAEModel", "mT5-xxl", 4096),
        SAMPLE.replace("{flag}", "--model_path"),
    ),
    "STDiT2": Kind(
        "Open-Sora v1.1, text to video",
        _transformer(4, "AutoencoderKL", "T5 v1.1 xxl", 4096),
        WITH_CONFIG,
        "blocks.0.scale_shift_table_temporal",
    ),
    "STDiT": Kind(
        "Open-Sora v1.0, text to video",
        _transformer(4, "AutoencoderKL", "T5 v1.1 xxl", 4096),
        WITH_CONFIG,
        "blocks.0.attn_temp.qkv.weight",
    ),
    "PixArtMS": Kind(
        "PixArt-alpha of several sizes, text to image",
        _transformer(4, "AutoencoderKL", "T5 v1.1 xxl", 4096),
        WITH_CONFIG,
        "csize_embedder.mlp.0.weight",
    ),
    "PixArt": Kind(
        "PixArt-alpha, text to image",
        _transformer(4, "AutoencoderKL", "T5 v1.1 xxl", 4096),
        WITH_CONFIG,
        "blocks.0.cross_attn.q_linear.weight",
    ),
    "Latte": Kind(
        "Latte, class or text to video",
        _transformer(4, "AutoencoderKL", "CLIPTextModel", 512),
        WITH_CONFIG,
        "temp_embed",  # of the published file; Open-Sora's own have the names of DiT
    ),
    "DiT": Kind(
        "DiT, class or text to image or video; without a config.json maybe Latte, whose tensors have the same names",
        _transformer(4, "AutoencoderKL", "CLIPTextModel", 512),
        WITH_CONFIG,
        "blocks.0.adaLN_modulation.1.weight",
    ),
    "CLIPTextModel": Kind(
        "CLIP, text encoder",
        lambda config: "DiT and Latte",
        "opensora inference CONFIG.py, with text_encoder = dict(type='clip', from_pretrained={path!r})",
        "text_model.embeddings.token_embedding.weight",
    ),
    "WFVAEModel": Kind(
        "Open-Sora-Plan v1.3, autoencoder",
        _autoencoder(8, "latent_dim", "OpenSoraT2V_v1_3, OpenSoraInpaint_v1_3"),
        SAMPLE.replace("{flag}", "--ae_path"),
        "encoder.down1.0.weight",
    ),
    "CausalVAEModel": Kind(
        "Open-Sora-Plan v1.0 to v1.2, autoencoder",
        _autoencoder(4, "embed_dim", "LatteT2V, OpenSoraT2V"),
        SAMPLE.replace("{flag}", "--ae_path"),
        "encoder.mid.attn_1.q.conv.weight",
    ),
    "AutoencoderKL": Kind(
        "Stable Diffusion, autoencoder of images",
        _autoencoder(4, "latent_channels", "STDiT2, STDiT, DiT, Latte, PixArt"),
        "opensora inference CONFIG.py, with vae = dict(type='VideoAutoencoderKL', from_pretrained={path!r})",
        "encoder.down_blocks.0.resnets.0.conv1.weight",
    ),
    "MT5EncoderModel": Kind(
        "mT5 or T5 v1.1, text encoder",
        lambda config: f"transformers of caption_channels {config.get('d_model', 4096)}",
        SAMPLE.replace("{flag}", "--text_encoder_name_1"),
        "encoder.block.0.layer.0.SelfAttention.q.weight",
    ),
}
OTHER_NAMES = {**MODEL_TYPES, "VideoAutoencoderKL": "AutoencoderKL"}  # of classes in config.json
# Where a class has its config files, and their names, of which the first is the default.
CONFIG_FILES = {
    "STDiT2": ("opensora-v1-1", ("video",)),
    "STDiT": ("opensora-v1-0", ("16x256x256", "16x512x512", "64x512x512")),
    "DiT": ("dit", ("16x256x256", "1x256x256-class")),
    "Latte": ("latte", ("16x256x256", "16x256x256-class")),
    "PixArt": ("pixart", ("1x256x256", "1x512x512", "16x256x256")),
    "PixArtMS": ("pixart", ("1x1024x1024",)),
}
CLASSES = "y_embedder.embedding_table.weight"  # of models that are conditioned on classes
TOKEN_SIDE = 16  # pixels
OPTIMIZER = "optimizer.safetensors"  # of a checkpoint of a training, whose subfolders hold the models
DIFFUSION = "transformer_blocks.0.attn1.to_q.weight"  # of the transformers of Open-Sora-Plan
LATENTS_OF_V1_2 = 4


@dataclass(frozen=True)
class Description:
    """What a file of weights holds.

    Attributes:
        path: the file.
        name: the class; None: unknown.
        lines: further properties by name.
    """

    path: Path
    name: Optional[str]
    lines: Mapping[str, str] = field(default_factory=dict)

    def text(self) -> str:
        rows = {"file": str(self.path), "class": self.name or "unknown", **self.lines}
        return "\n".join(f"{key:<12}{value}" for key, value in rows.items())


def inspect(path: Union[str, Path]) -> list[Description]:
    """Describes the weights at a path, or those in the subfolders of a folder that has none itself.

    Raises:
        FileNotFoundError: no such path, or no weights.
        UserError: the weights at the path itself are damaged.
    """
    path = resolve_path(path)
    try:
        return [describe(path)]
    except FileNotFoundError:
        if not path.is_dir():
            raise
    found = []
    for folder in _folders(path, DEPTH):
        try:
            found.append(describe(folder))
        except FileNotFoundError:
            continue
        except UserError as error:
            found.append(Description(folder, None, {"damaged": str(error)}))
        if len(found) == MOST:
            break
    if not found:
        raise FileNotFoundError(f"{path}: no weights in this folder, or in its subfolders")
    return found


def describe(path: Path) -> Description:
    """Describes the weights of a file, or of a folder that holds them itself; raises as `inspect`."""
    config = _config(path)
    published = published_class(config) or ""
    name: Optional[str] = OTHER_NAMES.get(published, published)
    source = _weights(path, name == "CausalVAEModel")
    state = open_state(source)
    if any(FACTOR.fullmatch(tensor) for tensor in state):
        return _describe_lora(source, state)
    name = name or recognize(state)
    lines = {} if config else {"config.json": "missing; the class is found out from the tensors"}
    kind = KINDS.get(name or "")
    if kind is not None:
        lines["is"] = _with_release(kind.what, config)
    lines.update(_size(state))
    if kind is not None:
        lines["goes with"] = kind.partners(config)
        place = source if path.is_file() else path
        lines["used by"] = kind.command.format(path=str(place), config=config_file(name or "", state))
    return Description(source, name, lines)


def _with_release(what: str, config: Config) -> str:
    """`Kind.what` with the release that the config.json tells, in place of several."""
    generation = generation_of(config) or generation_of_autoencoder(config)
    return f"{generation.release}, {what.rpartition(', ')[2]}" if generation else what


def recognize(state: Mapping[str, LazyTensor]) -> Optional[str]:
    """The class of a state dict, from the names of its tensors; None: unknown."""
    for name, kind in KINDS.items():
        if kind.mark and kind.mark in state:
            return name
    if DIFFUSION in state and "pos_embed.proj.weight" in state:
        channels = state["pos_embed.proj.weight"].shape[1]
        return "OpenSoraT2V" if channels == LATENTS_OF_V1_2 else "OpenSoraT2V_v1_3"
    return None


def config_file(name: str, state: Mapping[str, LazyTensor]) -> str:
    """The config file of a class for inference, chosen by the position embeddings and the condition of its weights."""
    if name not in CONFIG_FILES:
        return "CONFIG.py"
    folder, names = CONFIG_FILES[name]
    if CLASSES in state:
        fitting = [each for each in names if each.endswith("-class")]
    else:
        fitting = [each for each in names if each == _trained_size(state)]
    return f"configs/{folder}/inference/{[*fitting, names[0]][0]}.py"


def _trained_size(state: Mapping[str, LazyTensor]) -> str:
    """Frames, height and width of the position embeddings in a file, such as 16x256x256; 0 where it has none."""
    frames, tokens = 1, 0
    if "pos_embed_temporal" in state and len(state["pos_embed_temporal"].shape) == 3:
        frames = state["pos_embed_temporal"].shape[1]
    if "pos_embed" in state and len(state["pos_embed"].shape) == 3:
        tokens = state["pos_embed"].shape[1]
    side = TOKEN_SIDE * math.isqrt(tokens)
    return f"{frames}x{side}x{side}"


def _config(path: Path) -> Config:
    """The config.json of a path; empty if there is none."""
    try:
        return read_config(path)
    except FileNotFoundError:
        return {}


def _weights(path: Path, prefers_torch: bool) -> Path:
    """The file of the weights at a path. Raises FileNotFoundError if the folder has none itself.

    `prefers_torch`: a .ckpt comes before other files, as for CausalVAE.
    """
    if path.is_file():
        return path
    source = find_weights(path, "*.ckpt" if prefers_torch else "")
    if source.name == OPTIMIZER:
        raise FileNotFoundError(f"{path}: has the state of an optimizer; the models are in its subfolders")
    return source


def _describe_lora(source: Path, state: Mapping[str, LazyTensor]) -> Description:
    settings = read_settings(source)
    layers = len({found[1] for name in state if (found := FACTOR.fullmatch(name))})
    lines = {"is": f"LoRA of {layers} layers", **_size(state)}
    if settings is not None:
        lines["settings"] = f"rank {settings.rank}, alpha {settings.alpha:g}"
    lines["used by"] = f"opensora sample --lora {source} ..."
    return Description(source, "LoRA", lines)


def _size(state: Mapping[str, LazyTensor]) -> dict[str, str]:
    numbers = {name: tensor for name, tensor in state.items() if tensor.dtype in FLOATS}
    types: Counter[str] = Counter()
    for tensor in numbers.values():
        types[tensor.dtype] += tensor.stored_nbytes
    count = sum(math.prod(tensor.shape) for tensor in numbers.values())
    stored = ", ".join(f"{kind} {_shown(size)}" for kind, size in types.most_common())
    return {"parameters": f"{count:,} in {len(numbers)} tensors", "stored as": stored or "no numbers"}


def _shown(size: int) -> str:
    return f"{size / 1e9:.3g} GB" if size >= 1e8 else f"{size / 1e6:.3g} MB"


def _folders(path: Path, depth: int) -> Iterator[Path]:
    for folder in sorted(each for each in path.iterdir() if each.is_dir() and not each.name.startswith(".")):
        yield folder
        if depth > 1:
            yield from _folders(folder, depth - 1)
