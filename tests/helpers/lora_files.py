"""Small LoRAs, and the files in which other tools store them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Callable, NamedTuple

import numpy as np
from safetensors.numpy import save_file
from torch_files import as_tensors, save_zip

from opensora.checkpoint.lora.files import LORA_NAME, LoRASettings, LowRank, read_lora, write_lora

# (out, in) of linear layers with published names.
MODULES = {
    "transformer_blocks.0.attn1.to_q": (6, 5),
    "transformer_blocks.0.attn1.to_out.0": (5, 6),
    "transformer_blocks.1.ff.net.0.proj": (12, 5),
    "transformer_blocks.1.ff.net.2": (5, 12),
    "proj_out": (4, 5),
}


def random_lora(rank: int = 2, factor: float = 1.0, seed: int = 0, modules: Mapping = MODULES) -> dict[str, LowRank]:
    """A LoRA of all layers with normally distributed A and B."""
    rng = np.random.default_rng(seed)
    return {
        name: LowRank(
            rng.standard_normal((rank, width), np.float32), rng.standard_normal((height, rank), np.float32), factor
        )
        for name, (height, width) in modules.items()
    }


class Dialect(NamedTuple):
    """Names of a layer's tensors: a function of the layer's name, and the endings for A and B."""

    stem: Callable[[str], str]
    a: str
    b: str
    has_alpha: bool = False  # a tensor `.alpha`; otherwise alpha is the rank


def _underscored(name: str) -> str:
    return f"lora_unet_{name.replace('.', '_')}"


DIALECTS = {
    "diffusers": Dialect("transformer.{}".format, "lora_A.weight", "lora_B.weight"),
    "older diffusers": Dialect("transformer.{}".format, "lora.down.weight", "lora.up.weight"),
    "peft": Dialect("base_model.model.{}".format, "lora_A.weight", "lora_B.weight"),
    "peft of a wrapper": Dialect("base_model.model.transformer.{}".format, "lora_A.weight", "lora_B.weight"),
    "kohya": Dialect(_underscored, "lora_down.weight", "lora_up.weight", has_alpha=True),
    "comfyui": Dialect("diffusion_model.{}".format, "lora_A.weight", "lora_B.weight", has_alpha=True),
    "comfyui, down and up": Dialect("diffusion_model.{}".format, "lora_down.weight", "lora_up.weight", has_alpha=True),
    "comfyui, checkpoint": Dialect("model.diffusion_model.{}".format, "lora_A.weight", "lora_B.weight"),
    "lora_unet_ with dots": Dialect("lora_unet_{}".format, "lora_down.weight", "lora_up.weight", has_alpha=True),
    "diffsynth": Dialect(str, "lora_A.default.weight", "lora_B.default.weight"),
    "without weight": Dialect(str, "lora_A", "lora_B"),
}


def tensors_of(layers: Mapping[str, LowRank], dialect: Dialect) -> dict[str, np.ndarray]:
    """The tensors of a LoRA with the names of a dialect."""
    tensors = {}
    for name, layer in layers.items():
        stem = dialect.stem(name)
        tensors[f"{stem}.{dialect.a}"], tensors[f"{stem}.{dialect.b}"] = layer.a, layer.b
        if dialect.has_alpha:
            tensors[f"{stem}.alpha"] = np.array(layer.factor * layer.rank, np.float32)
    return tensors


def save_peft(folder: Path, layers: Mapping[str, LowRank], **config) -> Path:
    """A folder of PEFT's save_pretrained; `config` has values of its adapter_config.json."""
    folder.mkdir(exist_ok=True)
    save_file(tensors_of(layers, DIALECTS["peft"]), folder / "adapter_model.safetensors", {"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **config}))
    return folder


def make_lora(folder: Path) -> Path:
    """A file that this project wrote, with metadata."""
    write_lora(folder / LORA_NAME, random_lora(), LoRASettings(2, 4.0, rank_pattern={"to_x": 3}))
    return folder / LORA_NAME


def make_kohya(folder: Path) -> Path:
    """A PyTorch file."""
    save_zip(folder / "x.pt", as_tensors(tensors_of(random_lora(), DIALECTS["kohya"])))
    return folder / "x.pt"


def make_adapter_config(folder: Path) -> Path:
    """The settings in a folder of PEFT."""
    config = LoRASettings(2, 4.0, 0.1, ("to_q",), {"to_x": 3}, {"proj_out": 0.5}).to_config()
    return save_peft(folder, random_lora(), **config) / "adapter_config.json"


def read_any_lora(path: Path) -> None:
    """Reads one of these files, or the folder of an adapter_config.json."""
    read_lora(path.parent if path.suffix == ".json" else path, MODULES)


def same_layers(found: Mapping[str, LowRank], expected: Mapping[str, LowRank]) -> bool:
    """Whether two LoRAs have the same matrices, and factors up to float32's precision."""
    return found.keys() == expected.keys() and all(
        np.array_equal(found[name].a, layer.a)
        and np.array_equal(found[name].b, layer.b)
        and np.isclose(found[name].factor, layer.factor, rtol=1e-6, atol=0)
        for name, layer in expected.items()
    )
