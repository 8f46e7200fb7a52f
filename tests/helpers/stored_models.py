"""Tiny models whose weights are in files of every type, and a call of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mindspore as ms
import numpy as np
from golden_cases import case, given, weight
from golden_models import OPENSORA_CASES
from mindspore import Tensor
from tiny_models import DIT, LATTE, OPENSORA_V1_2, TEXT, VAE

from opensora.checkpoint.convert import convert
from opensora.checkpoint.formats.safetensors import write_safetensors
from opensora.checkpoint.lazy_tensor import ArrayTensor, ConvertedTensor
from opensora.checkpoint.quantized import Q8_BLOCK
from opensora.models import (
    LatteT2V,
    MT5EncoderModel,
    OpenSoraInpaint_v1_3,
    OpenSoraT2V,
    OpenSoraT2V_v1_3,
    STDiT2,
    VideoAutoencoderKL,
    WFVAEModel,
)
from opensora.models.pretrained import PretrainedModel


class Kind(NamedTuple):
    """A model, its config, and a function that calls it and returns its outputs."""

    model: type[PretrainedModel]
    config: Mapping[str, Any]
    call: Callable[[Any], Sequence[Tensor]]


def tensor(name: str, *shape: int) -> Tensor:
    return Tensor(given("stored", name, shape))


def denoise(model: PretrainedModel) -> list[Tensor]:
    latents = tensor("latents", 1, 20 if isinstance(model, OpenSoraInpaint_v1_3) else model.config.in_channels, 2, 4, 4)
    text, mask = tensor("text", 1, 1, 6, 32), Tensor(np.float32([[[1, 1, 1, 1, 0, 0]]]))
    return [model(latents, Tensor([500.0]), text, None, mask)]


def denoise_stdit(model: PretrainedModel) -> list[Tensor]:
    numbers = {"timestep": 500, "num_frames": 2, "height": 32, "width": 32, "ar": 1, "fps": 24}
    scalars = {name: Tensor(np.float32([value])) for name, value in numbers.items()}
    return [model(x=tensor("x", 1, 4, 2, 4, 4), y=tensor("text", 1, 1, 6, 32), **scalars)]


def encode_text(model: PretrainedModel) -> list[Tensor]:
    ids = np.random.RandomState(0).randint(0, TEXT["vocab_size"], (2, 7)).astype(np.int32)
    return [model(Tensor(ids), Tensor((np.arange(7) < [[7], [4]]).astype(np.int32)))]


def encode_and_decode(model: PretrainedModel) -> list[Tensor]:
    return [model.encode(tensor("video", 1, 3, 5, 16, 16)).mean, model.decode(tensor("z", 1, 8, 2, 2, 2))]


def encode_and_decode_frames(model: PretrainedModel) -> list[Tensor]:
    (posterior,) = model.posteriors(tensor("video", 1, 3, 1, 16, 24))
    return [posterior.mean, model.decode(tensor("z", 1, 4, 1, 2, 3))]


STDIT = dict(input_sq_size=64, hidden_size=96, depth=3, num_heads=4, caption_channels=32, model_max_length=6)
THREE_BLOCKS = {**DIT, "num_layers": 3}  # one of them sparse
KINDS = {
    "mt5": Kind(MT5EncoderModel, {**TEXT, "num_layers": 3}, encode_text),
    "dit": Kind(OpenSoraT2V_v1_3, THREE_BLOCKS, denoise),
    "opensora_v1_2": Kind(OpenSoraT2V, OPENSORA_V1_2, denoise),
    "latte": Kind(LatteT2V, LATTE, denoise),
    "inpaint": Kind(OpenSoraInpaint_v1_3, THREE_BLOCKS, denoise),
    "stdit2": Kind(STDiT2, {**STDIT, "qk_norm": True}, denoise_stdit),
    "wfvae": Kind(WFVAEModel, VAE, encode_and_decode),
    "autoencoder_kl": Kind(VideoAutoencoderKL, case("sd_vae_odd", OPENSORA_CASES)["config"], encode_and_decode_frames),
}
STREAMABLE = [name for name, kind in KINDS.items() if kind.model.block_list]


def drawn_state(name: str) -> dict[str, np.ndarray]:
    """Weights of a model, drawn by name."""
    model = KINDS[name].model.without_weights(**KINDS[name].config)
    state = {key: weight(name, key, parameter.shape) for key, parameter in model.parameters_and_names()}
    state.update({alias: state[key] for alias, key in model.aliases.items()})
    return {**state, **model.torch_buffers()}


def exact_model(name: str, state: Mapping[str, np.ndarray]) -> PretrainedModel:
    """The float32 model with these weights."""
    model = KINDS[name].model.without_weights(**KINDS[name].config)
    model.load_torch_state(state)
    return model


def write_model(folder: Path, name: str, dtype: str) -> Path:
    """A file of a model's weights, with config.json.

    Args:
        dtype: F32, BF16 or F16, of all tensors; Q8_0: a GGUF file; I8: safetensors with weights and scales of random
            numbers below 41, of which no block would be quantized to these numbers.
    """
    kind, path, tensors = KINDS[name], folder / "x.safetensors", {}
    folder.mkdir(parents=True, exist_ok=True)
    kind.model.without_weights(**kind.config).save_config(folder)
    random = np.random.RandomState(0)
    for key, value in drawn_state(name).items():
        if dtype == "I8" and key in kind.model.aliases:
            continue  # its numbers would differ
        if dtype != "I8":
            tensors[key] = ConvertedTensor(ArrayTensor(value), "F32" if dtype == "Q8_0" else dtype)
        elif value.ndim == 2 and value.shape[1] % Q8_BLOCK == 0 and key.endswith(".weight"):
            scale = np.abs(value).reshape(len(value), -1, Q8_BLOCK).mean(2) / 40
            tensors[key] = ArrayTensor(random.randint(-40, 41, value.shape).astype(np.int8))
            tensors[f"{key}_scale"] = ArrayTensor(scale.astype(np.float16))
        else:
            tensors[key] = ArrayTensor(value)
    write_safetensors(path, tensors)
    if dtype == "Q8_0":
        convert(path, folder / "x.gguf", folder / "config.json", to="q8_0")
        path.unlink()
        return folder / "x.gguf"
    return path


def outputs(name: str, model: PretrainedModel) -> list[np.ndarray]:
    """The outputs of a call, float32."""
    return [output.astype(ms.float32).asnumpy() for output in KINDS[name].call(model.set_train(False))]


def same(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> bool:
    """Bit for bit."""
    assert all(np.isfinite(array).all() for array in expected)
    return all(map(np.array_equal, found, expected))
