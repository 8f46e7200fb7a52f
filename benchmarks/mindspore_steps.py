"""The cases with this project's models: the worker `python -m benchmarks.mindspore_steps CASE [--device ...]`."""

from __future__ import annotations

import argparse
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

import opensora  # noqa: F401, before MindSpore, whose threads read the settings
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
from benchmarks.work import WORK
from benchmarks.worker import Step, serve
from opensora.config.command_line import CommandParser
from opensora.device import add_arguments, setup
from opensora.models import MT5EncoderModel, OpenSoraT2V_v1_3, WFVAEModel
from opensora.pipelines.denoise import denoise
from opensora.pipelines.text import TextEmbedding
from opensora.schedulers import get_scheduler


def filled(model_class: type, case: Case) -> nn.Cell:
    model = model_class.without_weights(**case.config).set_train(False)
    for name, parameter in model.parameters_and_names():
        parameter.set_data(Tensor(weight(name, parameter.shape)))
    return model


def vae_encode(case: Case) -> tuple[nn.Cell, Step]:
    vae, video = filled(WFVAEModel, case), Tensor(normal(case.input))
    return vae, lambda: vae.encode(video).mean.asnumpy()


def vae_decode(case: Case) -> tuple[nn.Cell, Step]:
    vae, latents = filled(WFVAEModel, case), Tensor(normal(case.input))
    return vae, lambda: vae.decode(latents).asnumpy()


def transformer_inputs(case: Case) -> tuple:
    rows = case.input[0]
    return (
        Tensor(normal(case.input)),
        Tensor(np.full(rows, 500, np.float32)),
        Tensor(text_states(case, rows)[:, None]),
        None,
        Tensor(text_mask(rows, case.text)[:, None]),
    )


def dit_step(case: Case) -> tuple[nn.Cell, Step]:
    model, inputs = filled(OpenSoraT2V_v1_3, case), transformer_inputs(case)
    return model, lambda: model(*inputs).asnumpy()


class SquaredError(nn.Cell):
    """The mean squared error of a prediction, with the input as its target."""

    def __init__(self, model: nn.Cell):
        super().__init__()
        self.model = model

    def construct(self, x: Tensor, timestep: Tensor, text: Tensor, mask, text_mask: Tensor) -> Tensor:
        return ((self.model(x, timestep, text, mask, text_mask) - x) ** 2).mean()


def train_step(case: Case) -> tuple[nn.Cell, Step]:
    """Returns the gradient of the first weight, which needs the backward pass through all layers."""
    model, inputs = filled(OpenSoraT2V_v1_3, case), transformer_inputs(case)
    names, parameters = zip(*model.parameters_and_names())
    differentiated = ms.value_and_grad(SquaredError(model), None, list(parameters))
    first = names.index("pos_embed.proj.weight")

    def step() -> np.ndarray:
        _, gradients = differentiated(*inputs)
        return gradients[first].asnumpy()

    return model, step


def sampling(case: Case) -> tuple[nn.Cell, Step]:
    model, latents = filled(OpenSoraT2V_v1_3, case), Tensor(normal(case.input))
    text = TextEmbedding(text_states(case, 2), text_mask(2, case.text))
    scheduler = get_scheduler("DDIM")
    return model, lambda: denoise(
        model, scheduler, text, latents, SAMPLING_STEPS, GUIDANCE_SCALE, None, progress=False
    ).latents.asnumpy()


def mt5(case: Case) -> tuple[nn.Cell, Step]:
    encoder, ids = filled(MT5EncoderModel, case), Tensor(token_ids(case))
    mask = Tensor(text_mask(*case.input))
    return encoder, lambda: encoder(ids, mask).asnumpy()


STEPS = {
    "vae_encode": vae_encode,
    "vae_decode": vae_decode,
    "dit_step": dit_step,
    "mt5": mt5,
    "train_step": train_step,
    "sampling": sampling,
}


def build(args: argparse.Namespace) -> tuple[Step, dict[str, Any]]:
    setup(args)
    case = CASES[args.case]
    model, step = STEPS[args.case](case)
    work = WORK[args.case](case)
    return step, {
        "version": ms.__version__,
        "flops": work.flops,
        "bytes": work.bytes,
        "parameters": sum(parameter.size for parameter in model.get_parameters()),
    }


def main() -> None:
    parser = CommandParser(description=__doc__)
    parser.add_argument("case", choices=tuple(CASES), help="the model to run")
    add_arguments(parser)
    args = parser.parse_args()
    serve(lambda: build(args))


if __name__ == "__main__":
    main()
