"""The cases with PyTorch models: the worker `python -m benchmarks.torch_steps CASE`."""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.cases import (
    CASES,
    GUIDANCE_SCALE,
    SAMPLING_STEPS,
    Case,
    normal,
    text_mask,
    text_states,
    token_ids,
    weight,
)
from benchmarks.torch_models.dit import OpenSoraT2V
from benchmarks.torch_models.mt5 import MT5Encoder
from benchmarks.torch_models.wfvae import WFVAE
from benchmarks.worker import Step, serve


def filled(model_class: type, case: Case) -> nn.Module:
    model = model_class(case.config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(weight(name, tuple(parameter.shape))))
    return model


def inference(function, *inputs: np.ndarray) -> Step:
    tensors = [torch.from_numpy(array) for array in inputs]

    @torch.inference_mode()
    def step() -> np.ndarray:
        return function(*tensors).numpy()

    return step


def vae_encode(case: Case) -> tuple[nn.Module, Step]:
    vae = filled(WFVAE, case)
    return vae, inference(lambda video: vae.encoder(video).chunk(2, 1)[0], normal(case.input))


def vae_decode(case: Case) -> tuple[nn.Module, Step]:
    vae = filled(WFVAE, case)
    return vae, inference(vae.decoder, normal(case.input))


def transformer_inputs(case: Case) -> tuple[np.ndarray, ...]:
    rows = case.input[0]
    return normal(case.input), np.full(rows, 500, np.float32), text_states(case, rows), text_mask(rows, case.text)


def dit_step(case: Case) -> tuple[nn.Module, Step]:
    model = filled(OpenSoraT2V, case)
    return model, inference(model, *transformer_inputs(case))


def train_step(case: Case) -> tuple[nn.Module, Step]:
    model = filled(OpenSoraT2V, case)
    inputs = [torch.from_numpy(array) for array in transformer_inputs(case)]

    def step() -> np.ndarray:
        model.zero_grad()
        ((model(*inputs) - inputs[0]) ** 2).mean().backward()
        return model.pos_embed.proj.weight.grad.numpy()

    return model, step


def sampling(case: Case) -> tuple[nn.Module, Step]:
    """DDIM (Song, Meng & Ermon 2020, eq. 12) of a model that predicts noise."""
    model = filled(OpenSoraT2V, case)
    alphas = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    stride = 1000 // SAMPLING_STEPS

    def sample(x, text, mask):
        for t in range(1000 - stride, -1, -stride):
            alpha, next_alpha = alphas[t], alphas[t - stride] if t else 1.0
            negative, positive = model(torch.cat((x, x)), torch.full((2 * len(x),), float(t)), text, mask).chunk(2)
            noise = negative + GUIDANCE_SCALE * (positive - negative)
            x0 = (x - (1 - alpha) ** 0.5 * noise) / alpha**0.5
            x = next_alpha**0.5 * x0 + (1 - next_alpha) ** 0.5 * noise
        return x

    return model, inference(sample, normal(case.input), text_states(case, 2), text_mask(2, case.text))


def mt5(case: Case) -> tuple[nn.Module, Step]:
    encoder = filled(MT5Encoder, case)
    return encoder, inference(encoder, token_ids(case), text_mask(*case.input))


STEPS = {
    "vae_encode": vae_encode,
    "vae_decode": vae_decode,
    "dit_step": dit_step,
    "mt5": mt5,
    "train_step": train_step,
    "sampling": sampling,
}


def build() -> tuple[Step, dict[str, Any]]:
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    name = sys.argv[1]
    model, step = STEPS[name](CASES[name])
    return step, {"version": torch.__version__, "parameters": sum(p.numel() for p in model.parameters())}


if __name__ == "__main__":
    serve(build)
