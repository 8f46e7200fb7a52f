"""Models with weights and inputs derived from names: outputs, and the gradients of a loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Callable, Optional

import mindspore as ms
import numpy as np
from golden_cases import case, given, gradient_difference, relative_difference, weight
from golden_models import OPENSORA_CASES, build, stdit_inputs
from mindspore import Tensor, nn

from opensora.models import STDiT2
from opensora.models.discriminator import NLayerDiscriminator3D
from opensora.models.lpips import LPIPS
from opensora.models.pretrained import PretrainedModel

WIDE_HEADS = dict(hidden_size=144, depth=1, num_heads=2, input_sq_size=512, qk_norm=True)  # 72 channels a head


@dataclass
class Run:
    """A model and a call of it.

    Attributes:
        forward: inputs -> a tensor, or several.
        visible: 1 where the output counts, broadcasting to it; None: everywhere.
    """

    model: PretrainedModel
    forward: Callable[..., Any]
    inputs: Mapping[str, Any]
    visible: Optional[np.ndarray] = None
    trains: bool = False


@dataclass
class Result:
    """Arrays of the outputs, of the first input's gradient, and of the parameters' gradients by name."""

    outputs: list[np.ndarray]
    input_gradient: Optional[np.ndarray]
    gradients: dict[str, np.ndarray] = field(default_factory=dict)


class Loss(nn.Cell):
    """The sum of the outputs times fixed random weights; its gradients have a magnitude of about 1."""

    def __init__(self, run: Run):
        super().__init__(auto_prefix=False)
        self.run, self.rest = run, dict(list(run.inputs.items())[1:])

    def construct(self, x: Tensor) -> tuple:
        outputs = self.run.forward(x, **self.rest)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        total = 0
        for index, output in enumerate(outputs):
            weights = given("loss", f"w{index}", output.shape) / np.sqrt(output.size)
            weights = weights if self.run.visible is None else weights * self.run.visible
            total = total + (output.astype(ms.float32) * Tensor(weights.astype(np.float32))).sum()
        return total, outputs


def evaluate(run: Run, dtype=ms.float32) -> Result:
    """Outputs, and gradients as float32; the model is cast to `dtype`."""
    model = run.model.cast(dtype).set_train(run.trains)
    x = next(iter(run.inputs.values()))
    loss, parameters = Loss(run), [p for p in model.get_parameters() if p.requires_grad]
    differentiable = x.dtype == ms.float32
    if parameters:
        position = 0 if differentiable else None
        (_, outputs), gradients = ms.value_and_grad(loss, position, parameters, has_aux=True)(x)
        input_gradient, gradients = gradients if differentiable else (None, gradients)
    else:
        (_, outputs), input_gradient = ms.value_and_grad(loss, 0, has_aux=True)(x)
        gradients = ()
    return Result(
        [output.float().asnumpy() * (1 if run.visible is None else run.visible) for output in outputs],
        None if input_gradient is None else input_gradient.float().asnumpy(),
        {parameter.name: gradient.float().asnumpy() for parameter, gradient in zip(parameters, gradients)},
    )


def difference(found: Result, expected: Result, smallest: float) -> dict[str, float]:
    """The relative difference of the outputs, and of all gradients as `gradient_difference` defines it."""
    assert found.gradients.keys() == expected.gradients.keys()
    gradients = [[*result.gradients.values()] for result in (found, expected)]
    if expected.input_gradient is not None:
        gradients = [[result.input_gradient, *arrays] for result, arrays in zip((found, expected), gradients)]
    return {
        "outputs": max(relative_difference(one, other) for one, other in zip(found.outputs, expected.outputs)),
        "gradients": gradient_difference(*gradients, smallest),
    }


def transformer(name: str) -> Run:
    """A case of the diffusion transformer, text to video or inpainting."""
    inputs = case(name)["inputs"]
    latents = given(name, "hidden_states", inputs["hidden_states"]["shape"])
    text = given(name, "encoder_hidden_states", inputs["encoder_hidden_states"]["shape"])
    text_mask = np.stack([[np.arange(text.shape[2]) < kept] for kept in inputs["text_tokens_kept"]])
    visible, mask = None, None
    if inputs["latent_hw_kept"] is not None:
        visible = np.ones((latents.shape[0], 1, *latents.shape[2:]), np.float32)
        for sample, (h, w) in zip(visible, inputs["latent_hw_kept"]):
            sample[..., h:, :] = 0
            sample[..., w:] = 0
        mask = Tensor(visible[:, 0])
    model = build(name)
    return Run(
        model,
        model,
        {
            "hidden_states": Tensor(latents),
            "timestep": Tensor(np.array(inputs["timestep"], np.float32)),
            "encoder_hidden_states": Tensor(text),
            "attention_mask": mask,
            "encoder_attention_mask": Tensor(text_mask.astype(np.float32)),
        },
        visible,
    )


def stdit(name: str) -> Run:
    model = build(name, OPENSORA_CASES)
    return Run(model, model, stdit_inputs(name))


def wide_stdit() -> Run:
    """Heads of 72 channels, and 2 x 32 x 32 = 2048 rows of temporal attention."""
    model = drawn(STDiT2(**WIDE_HEADS, caption_channels=32, model_max_length=6))
    numbers = {"timestep": 500, "num_frames": 2, "height": 512, "width": 512, "ar": 1, "fps": 24}
    inputs = {
        "x": Tensor(given("wide", "x", (2, 4, 2, 64, 64))),
        "y": Tensor(given("wide", "y", (2, 1, 6, 32))),
        "mask": Tensor((np.arange(6) < [[6], [3]]).astype(np.int32)),
        **{name: Tensor(np.full(2, value, np.float32)) for name, value in numbers.items()},
    }
    return Run(model, model, inputs)


def text_encoder(name: str) -> Run:
    model = build(name)
    kept = np.array(case(name)["inputs"]["attention_kept"])[:, None]
    mask = np.arange(max(kept)[0]) < kept
    ids = np.random.RandomState(0).randint(0, model.config.vocab_size, mask.shape).astype(np.int32)
    inputs = {"input_ids": Tensor(ids), "attention_mask": Tensor(mask.astype(np.int32))}
    return Run(model, model, inputs, mask[..., None].astype(np.float32))


def video(*shape) -> Tensor:
    return Tensor(np.clip(given("video", "x", shape), -3, 3) / 3, ms.float32)


def autoencoder(name: str, frames: int) -> Run:
    """Encoder and decoder of WFVAE."""
    model = build(name)

    def forward(x: Tensor) -> tuple:
        posterior, *encoder_levels = model.encode_with_coefficients(x.astype(model.dtype))
        reconstruction, *decoder_levels, _ = model.decode_with_coefficients(posterior.mean.astype(model.dtype))
        return posterior.mean, posterior.logvar, reconstruction, *encoder_levels, *decoder_levels

    return Run(model, forward, {"x": video(1, 3, frames, 16, 24)})


def autoencoder_kl() -> Run:
    model = build("sd_vae_odd", OPENSORA_CASES)

    def forward(x: Tensor) -> tuple:
        (posterior,) = model.posteriors(x.astype(model.dtype))
        latents = posterior.mean.expand_dims(0).swapaxes(1, 2).astype(model.dtype)
        return posterior.mean, posterior.logvar, model.decode(latents)

    return Run(model, forward, {"x": video(1, 3, 2, 16, 24)})


def discriminator() -> Run:
    model = drawn(NLayerDiscriminator3D(ndf=8, n_layers=2))

    def forward(x: Tensor) -> Tensor:
        return model(x.astype(model.dtype))

    return Run(model, forward, {"x": video(2, 3, 5, 16, 16)}, trains=True)


def perceptual_distance() -> Run:
    return Run(model := drawn(LPIPS()), model, {"x": video(2, 3, 32, 32), "y": Tensor(-video(2, 3, 32, 32).asnumpy())})


def drawn(model: PretrainedModel) -> PretrainedModel:
    """The model with weights drawn by name; running statistics keep their initial values."""
    fixed = ("running_mean", "running_var", "num_batches_tracked", *model.torch_buffers())
    model.load_torch_state(
        {
            name: value if name.endswith(fixed) else weight(type(model).__name__, name, value.shape)
            for name, value in model.torch_state().items()
        }
    )
    return model


# Models that run in bfloat16 on A2 and A3, and autoencoders, which run in float16.
TRANSFORMERS: dict[str, Callable[[], Run]] = {
    **{name: lambda name=name: transformer(name) for name in ("dit_image", "dit_tiny_padded", "inpaint_tiny")},
    **{name: lambda name=name: stdit(name) for name in ("stdit2_tiny", "stdit2_qknorm_xmask")},
    "stdit2_wide": wide_stdit,
    "mt5_tiny": lambda: text_encoder("mt5_tiny"),
}
CONVOLUTIONAL: dict[str, Callable[[], Run]] = {
    "wfvae_layernorm": lambda: autoencoder("wfvae_ln_tiny", 5),
    "wfvae_groupnorm": lambda: autoencoder("wfvae_gn_small", 5),
    "wfvae_image": lambda: autoencoder("wfvae_image_tiny", 1),
    "autoencoder_kl": autoencoder_kl,
    "discriminator": discriminator,
}
