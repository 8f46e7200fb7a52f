"""Runs the models of the golden cases: weights and inputs by rule, outputs beside their references."""
from __future__ import annotations

import mindspore as ms
import numpy as np
from golden_cases import case, given, load_case, relative_difference, weight
from mindspore import Tensor

from opensora.models import MT5EncoderModel, OpenSoraInpaint_v1_3, OpenSoraT2V_v1_3, WFVAEModel

MODELS = {"WFVAEModel": WFVAEModel, "OpenSoraT2V_v1_3": OpenSoraT2V_v1_3,
          "OpenSoraInpaint_v1_3": OpenSoraInpaint_v1_3, "MT5EncoderModel": MT5EncoderModel}


def build(name: str):
    """The model of a case with its weights by rule, loaded through torch names."""
    description = case(name)
    model = MODELS[description["model"]](**description["config"])
    state = {key: value if "wavelet_transform" in key else weight(name, key, value.shape)
             for key, value in model.torch_state().items()}
    model.load_torch_state(state)
    return model.set_train(False)


def wfvae_rows(name: str) -> dict[str, float]:
    """Relative difference of every output of a WFVAE case, with temporal tiling too."""
    vae, reference = build(name), load_case(name)
    x = Tensor(np.clip(given(name, "x", case(name)["inputs"]["x"]["shape"]), -3, 3) / 3, ms.float32)
    posterior, l1, l2 = vae.encode_with_coefficients(x)
    outputs = {"mean": posterior.mean, "logvar": posterior.logvar, "enc_l1": l1, "enc_l2": l2,
               "decode": vae.decode(posterior.mean)}
    vae.enable_tiling()
    outputs["tiled_mean"] = vae.encode(x).mean
    outputs["tiled_decode"] = vae.decode(outputs["tiled_mean"])
    # Where no tiled outputs are stored, tiling must change nothing.
    return {key: relative_difference(value.asnumpy(), reference.get(key, reference[key.replace("tiled_", "")]))
            for key, value in outputs.items()}


def dit_rows(name: str) -> dict[str, float]:
    """Relative difference of a DiT case's output, where the latent mask is 1."""
    inputs, reference = case(name)["inputs"], load_case(name)["output"]
    latents = given(name, "hidden_states", inputs["hidden_states"]["shape"])
    text = given(name, "encoder_hidden_states", inputs["encoder_hidden_states"]["shape"])
    text_mask = np.stack([[np.arange(text.shape[2]) < kept] for kept in inputs["text_tokens_kept"]])
    visible = np.ones((latents.shape[0],) + latents.shape[2:], np.float32)
    mask = None
    if inputs["latent_hw_kept"] is not None:
        for sample, (h, w) in zip(visible, inputs["latent_hw_kept"]):
            sample[:, h:] = 0
            sample[:, :, w:] = 0
        mask = Tensor(visible)
    output = build(name)(Tensor(latents), Tensor(inputs["timestep"], ms.int64), Tensor(text), mask,
                         Tensor(text_mask.astype(np.float32)))
    kept = visible[:, None]
    return {"output": relative_difference(output.asnumpy() * kept, reference * kept)}


def mt5_rows(name: str) -> dict[str, float]:
    """Relative difference of an mT5 case's states, at the tokens kept."""
    reference = load_case(name)
    ids = reference["input_ids"].astype(np.int32)
    mask = np.stack([np.arange(ids.shape[1]) < kept for kept in case(name)["inputs"]["attention_kept"]])
    states = build(name)(Tensor(ids), Tensor(mask.astype(np.int32)))
    kept = mask[..., None]
    return {"last_hidden_state": relative_difference(states.asnumpy() * kept, reference["last_hidden_state"] * kept)}
