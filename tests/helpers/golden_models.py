"""Runs the models of the golden cases, with weights and inputs derived from names, and compares with the references."""

from __future__ import annotations

from functools import lru_cache
from typing import Optional

import mindspore as ms
import numpy as np
from golden_cases import case, given, load_case, relative_difference, weight
from mindspore import Tensor, ops

from opensora.models import (
    CausalVAEModel,
    CLIPTextModel,
    DiT,
    Latte,
    LatteT2V,
    MT5EncoderModel,
    OpenSoraInpaint_v1_3,
    OpenSoraT2V,
    OpenSoraT2V_v1_3,
    PixArt,
    PixArtMS,
    STDiT,
    STDiT2,
    T5EncoderModel,
    VideoAutoencoderKL,
    WFVAEModel,
)
from opensora.models.causal_vae.tiling import Tiling
from opensora.models.discriminator import NLayerDiscriminator
from opensora.models.stdit.embeddings import grid_angles, position_embedding
from opensora.schedulers.iddpm.sampler import guided

OPENSORA_CASES = "opensora_cases.json"
PLAN_V1_CASES = "plan_v1_cases.json"  # Open-Sora-Plan v1.0 to v1.2
HPCAITECH_V1_CASES = "open_sora_v1_0_cases.json"  # Open-Sora v1.0 and its text encoders
CAUSAL_VAE_CASES = "causalvae_cases.json"
DISCRIMINATOR_CASES = "discriminator_cases.json"
MODELS = {
    "CausalVAEModel": CausalVAEModel,
    "WFVAEModel": WFVAEModel,
    "OpenSoraT2V_v1_3": OpenSoraT2V_v1_3,
    "OpenSoraInpaint_v1_3": OpenSoraInpaint_v1_3,
    "OpenSoraT2V": OpenSoraT2V,
    "LatteT2V": LatteT2V,
    "MT5EncoderModel": MT5EncoderModel,
    "T5EncoderModel": T5EncoderModel,
    "CLIPTextModel": CLIPTextModel,
    "STDiT": STDiT,
    "DiT": DiT,
    "Latte": Latte,
    "PixArt": PixArt,
    "PixArtMS": PixArtMS,
    "STDiT2": STDiT2,
    "STDiT2+forward_with_cfg": STDiT2,
    "VideoAutoencoderKL(AutoencoderKL)": VideoAutoencoderKL,
}


def build(name: str, file: str = "cases.json", **options):
    """The model of a case with its derived weights, loaded by torch name; `options` override its config."""
    description = case(name, file)
    model = MODELS[description["model"]](**{**description["config"], **options})
    buffers = model.torch_buffers()
    state = {
        key: value if key in buffers else weight(name, key.removeprefix("module."), value.shape)
        for key, value in model.torch_state().items()
    }
    model.load_torch_state(state)
    return model.set_train(False)


# The most recent model: deriving the weights of a large one takes many seconds, and each case runs in two modes.
same_model = lru_cache(maxsize=1)(build)


def wfvae_rows(name: str) -> dict[str, float]:
    """Relative difference of every output of a WFVAE case, also with temporal tiling."""
    vae, reference = same_model(name), load_case(name)
    vae.enable_tiling(False)
    x = Tensor(np.clip(given(name, "x", case(name)["inputs"]["x"]["shape"]), -3, 3) / 3, ms.float32)
    posterior, l1, l2 = vae.encode_with_coefficients(x)
    outputs = {
        "mean": posterior.mean,
        "logvar": posterior.logvar,
        "enc_l1": l1,
        "enc_l2": l2,
        "decode": vae.decode(posterior.mean),
    }
    vae.enable_tiling()
    outputs["tiled_mean"] = vae.encode(x).mean
    outputs["tiled_decode"] = vae.decode(outputs["tiled_mean"])
    # Without stored tiled outputs, tiling must not change the result.
    return {
        key: relative_difference(value.asnumpy(), reference.get(key, reference[key.replace("tiled_", "")]))
        for key, value in outputs.items()
    }


def causal_vae_rows(name: str) -> dict[str, float]:
    """Relative difference of every output of a CausalVAE case."""
    description, reference = case(name, CAUSAL_VAE_CASES), load_case(name)
    vae, prefix = same_model(name, CAUSAL_VAE_CASES), ""
    if "tiling" in description:
        prefix, only_in_space = "tiled_", {"tile_sample_min_size_t": None, "tile_latent_min_size_t": None}
        vae.enable_tiling(tiling=Tiling(**{**only_in_space, **description["tiling"]}))
    posterior = vae.encode(Tensor(np.clip(given(name, "x", description["inputs"]["x"]["shape"]), -3, 3) / 3))
    stride = description.get("decode_stride", {"height": 1, "width": 1})
    outputs = {
        "mean": posterior.mean,
        "logvar": posterior.logvar,
        "decode": vae.decode(posterior.mean)[..., :: stride["height"], :: stride["width"]],
    }
    return {key: relative_difference(value.asnumpy(), reference[prefix + key]) for key, value in outputs.items()}


def discriminator_rows(name: str) -> dict[str, float]:
    """Relative difference of the logits in training, of the statistics that it updates, and of the logits with them."""
    description, reference = case(name, DISCRIMINATOR_CASES), load_case(name)
    network = NLayerDiscriminator(**description["config"])
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    state = {
        key: value if key.endswith(statistics) else weight(name, key, value.shape)
        for key, value in network.torch_state().items()
    }
    network.load_torch_state(state)
    x = Tensor(np.clip(given(name, "x", description["inputs"]["x"]["shape"]), -3, 3) / 3)
    outputs = {"train": network.set_train()(x).asnumpy(), "eval": network.set_train(False)(x).asnumpy()}
    outputs.update(network.torch_state())
    return {key: relative_difference(outputs[key], value) for key, value in reference.items()}


def dit_inputs(name: str, file: str = "cases.json") -> dict:
    """The arguments of the model in a case of a transformer of Open-Sora-Plan, by name."""
    inputs = case(name, file)["inputs"]
    latents = given(name, "hidden_states", inputs["hidden_states"]["shape"])
    text = given(name, "encoder_hidden_states", inputs["encoder_hidden_states"]["shape"])
    arguments = {
        "hidden_states": Tensor(latents),
        "timestep": Tensor(inputs["timestep"], ms.int64),
        "encoder_hidden_states": Tensor(text),
    }
    if inputs["latent_hw_kept"] is not None:
        visible = np.ones((latents.shape[0],) + latents.shape[2:], np.float32)
        for sample, (h, w) in zip(visible, inputs["latent_hw_kept"]):
            sample[:, h:] = 0
            sample[:, :, w:] = 0
        arguments["attention_mask"] = Tensor(visible)
    if inputs["text_tokens_kept"] is not None:
        kept = np.arange(text.shape[-2]) < np.array(inputs["text_tokens_kept"])[..., None]
        arguments["encoder_attention_mask"] = Tensor(kept.reshape(text.shape[:-1]).astype(np.float32))
    options = ("use_image_num", "enable_temporal_attentions")
    return {**arguments, **{key: inputs[key] for key in options if key in inputs}}


def dit_rows(name: str, file: str = "cases.json") -> dict[str, float]:
    """Relative difference of the output at latents whose mask is 1, in a case of a transformer of Open-Sora-Plan."""
    arguments, reference = dit_inputs(name, file), load_case(name)["output"]
    output = same_model(name, file)(**arguments).asnumpy()
    kept = arguments["attention_mask"].asnumpy()[:, None] if "attention_mask" in arguments else 1
    return {"output": relative_difference(output * kept, reference * kept)}


def plan_v1_rows(name: str) -> dict[str, float]:
    """`dit_rows` of Open-Sora-Plan v1.0 to v1.2."""
    return dit_rows(name, PLAN_V1_CASES)


def mt5_rows(name: str, file: str = "cases.json") -> dict[str, float]:
    """Relative difference of a T5 case's states at tokens whose mask is 1."""
    reference = load_case(name)
    ids = reference["input_ids"].astype(np.int32)
    mask = np.stack([np.arange(ids.shape[1]) < kept for kept in case(name, file)["inputs"]["attention_kept"]])
    states = same_model(name, file)(Tensor(ids), Tensor(mask.astype(np.int32)))
    kept = mask[..., None]
    return {"last_hidden_state": relative_difference(states.asnumpy() * kept, reference["last_hidden_state"] * kept)}


def t5_rows(name: str) -> dict[str, float]:
    """`mt5_rows` of T5 v1.1."""
    return mt5_rows(name, HPCAITECH_V1_CASES)


def clip_text_rows(name: str) -> dict[str, float]:
    """Relative difference of every output of a case of CLIP's text encoder."""
    reference = load_case(name)
    outputs = same_model(name, HPCAITECH_V1_CASES)(Tensor(reference["input_ids"].astype(np.int32)))
    names = "last_hidden_state", "pooler_output"
    return {key: relative_difference(value.asnumpy(), reference[key]) for key, value in zip(names, outputs)}


def hpcaitech_v1_inputs(name: str) -> dict:
    """The arguments of the model in a case of a transformer of Open-Sora v1.0, by name."""
    inputs = case(name, HPCAITECH_V1_CASES)["inputs"]
    arguments = {key: Tensor(given(name, key, inputs[key]["shape"])) for key in ("x", "y") if key in inputs}
    arguments["timestep"] = Tensor(np.array(inputs["timestep"], np.float32))
    if "labels" in inputs:
        arguments["y"] = Tensor(np.array(inputs["labels"], np.int32))
    if inputs.get("text_tokens_kept") is not None:
        kept = np.arange(inputs["y"]["shape"][2]) < np.array(inputs["text_tokens_kept"])[:, None]
        arguments["mask"] = Tensor(kept.astype(np.int32))
    if "x_mask" in inputs:
        arguments["x_mask"] = Tensor(np.array(inputs["x_mask"], bool))
    if "data_info" in inputs:
        sizes = inputs["data_info"].items()
        arguments["data_info"] = {key: Tensor(np.array(value, np.float32)) for key, value in sizes}
    return arguments


def hpcaitech_v1_rows(name: str) -> dict[str, float]:
    """Relative difference of the output in a case of a transformer of Open-Sora v1.0."""
    output = same_model(name, HPCAITECH_V1_CASES)(**hpcaitech_v1_inputs(name))
    return {"output": relative_difference(output.asnumpy(), load_case(name)["output"])}


def stdit_inputs(name: str) -> dict:
    """The arguments of the model in an STDiT2 case, by name."""
    inputs = case(name, OPENSORA_CASES)["inputs"]
    tokens = inputs["y"]["shape"][2]
    arguments = {key: Tensor(given(name, key, inputs[key]["shape"])) for key in ("x", "y")}
    for key in ("timestep", "height", "width", "num_frames", "ar", "fps"):
        arguments[key] = Tensor(np.array(inputs[key], np.float32))
    if inputs["text_tokens_kept"] is not None:
        arguments["mask"] = Tensor((np.arange(tokens) < np.array(inputs["text_tokens_kept"])[:, None]).astype(np.int32))
    if inputs["x_mask"] is not None:
        arguments["x_mask"] = Tensor(np.array(inputs["x_mask"], bool))
    return arguments


def stdit_rows(name: str) -> dict[str, float]:
    """Relative difference of an STDiT2 case's output; with guidance, of the half that sampling uses."""
    description, reference = case(name, OPENSORA_CASES), load_case(name)
    if "layer" in description:
        return {
            key: relative_difference(frame_positions(**arguments, dim=description["dim"]), reference[key])
            for key, arguments in zip(reference, description["args"])
        }
    model, arguments, expected = build(name, OPENSORA_CASES), stdit_inputs(name), reference["output"]
    if "cfg_scale" not in description:
        return {"output": relative_difference(model(**arguments).asnumpy(), expected)}
    x, timestep, x_mask = (arguments.pop(key) for key in ("x", "timestep", "x_mask"))
    predict = guided(model, arguments, description["cfg_scale"], description["cfg_channel"])
    output = predict(x, float(timestep[0]), x_mask)
    return {"output": relative_difference(output.asnumpy(), expected[: x.shape[0]])}


def frame_positions(h: int, w: int, scale: float, base_size: Optional[int], dim: int) -> np.ndarray:
    rows, columns = (np.arange(n) if base_size is None else np.arange(n) * base_size / n for n in (h, w))
    return position_embedding(Tensor(grid_angles(rows, columns, dim)), Tensor(scale, ms.float32)).asnumpy()[None]


def sd_vae_rows(name: str) -> dict[str, float]:
    """Relative difference of every output of an AutoencoderKL case."""
    description, reference = case(name, OPENSORA_CASES), load_case(name)
    vae = build(name, OPENSORA_CASES, micro_batch_size=description["micro_batch_size"])
    x = Tensor(np.clip(given(name, "x", description["inputs"]["x"]["shape"]), -3, 3) / 3, ms.float32)
    posteriors = vae.posteriors(x)
    mean = vae.encode(x, lambda k: np.zeros(posteriors[k].mean.shape, np.float32))
    drawn = vae.encode(x, lambda k: given(name, f"noise{k}", posteriors[k].mean.shape))
    logvar = ops.cat([posterior.logvar for posterior in posteriors], 0)
    outputs = {
        "mean_scaled": mean,
        "encode": drawn,
        "decode_of_mean": vae.decode(Tensor(reference["mean_scaled"])),
        "logvar": logvar.reshape(x.shape[0], x.shape[2], *logvar.shape[1:]).swapaxes(1, 2),
    }
    return {key: relative_difference(value.asnumpy(), reference[key]) for key, value in outputs.items()}
