"""The loss of CausalVAE training against a plain formula."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from golden_cases import gradient_difference
from mindspore import Tensor, ops
from tiny_models import CAUSAL_VAE

from opensora.models import CausalVAEModel
from opensora.models.discriminator import NLayerDiscriminator, NLayerDiscriminator3D
from opensora.train.vae_loss import GeneratorLoss, VAELossOptions


def numbers(*values) -> np.ndarray:
    return np.array([float(value) for value in values])


def norm(gradients) -> float:
    return float(np.sqrt(sum(np.square(gradient.asnumpy(), dtype=np.float64).sum() for gradient in gradients)))


@pytest.mark.parametrize(
    "generation, network",
    [("v1.0", NLayerDiscriminator), ("v1.1", NLayerDiscriminator3D), ("v1.2", NLayerDiscriminator3D)],
)
def test_gradients_of_causal_vae_equal_those_of_the_plain_formula(generation, network):
    """A discriminator of frames or of videos; the plain formula differentiates every term through the whole model."""
    ms.set_seed(0)
    vae = CausalVAEModel(**CAUSAL_VAE[generation])
    discriminator = network(ndf=8, n_layers=2).set_train(False)
    for parameter in discriminator.trainable_params():  # without larger weights, d_weight reaches its limit
        parameter.set_data(parameter * (8 if parameter.ndim > 1 else 1))
    options = VAELossOptions(kl_weight=1e-3)
    random = np.random.RandomState(0)
    video = Tensor(random.uniform(-1, 1, (2, 3, 5, 32, 32)).astype(np.float32))
    noise = Tensor(random.standard_normal((2, 4, 2, 4, 4)).astype(np.float32))

    def reconstruct():
        return vae.decode(vae.encode(video).sample(noise))

    def nll():
        return ops.abs(video - reconstruct()).sum() / (2 * 5)

    def g():
        rebuilt = reconstruct()
        if network is NLayerDiscriminator:
            rebuilt = rebuilt.swapaxes(1, 2).reshape(10, 3, 32, 32)
        return -discriminator(rebuilt).mean()

    def kl():
        return vae.encode(video).kl().mean()

    parameters, last = vae.trainable_params(), [vae.decoder.conv_out.conv.weight]
    weight = 0.5 * min(1e4, norm(ms.grad(nll, None, last)()) / (norm(ms.grad(g, None, last)()) + 1e-4))
    expected = [
        a.asnumpy() + weight * b.asnumpy() + 1e-3 * c.asnumpy()
        for a, b, c in zip(*(ms.grad(term, None, parameters)() for term in (nll, g, kl)))
    ]
    loss = GeneratorLoss(vae, options, discriminator=discriminator)
    (total, metrics), gradients = ms.value_and_grad(loss, None, parameters, has_aux=True)(video, noise, True)
    values = dict(zip(GeneratorLoss.metrics, numbers(*metrics)))
    assert values["d_weight"] == pytest.approx(weight, rel=1e-3) and values["wl_loss"] == 0
    assert float(total) == pytest.approx(float(nll() + weight * g() + 1e-3 * kl()), rel=1e-5)
    assert gradient_difference([gradient.asnumpy() for gradient in gradients], expected) < 1e-3
    with pytest.raises(ValueError, match="--wavelet_loss: CausalVAEModel has no wavelet coefficients"):
        GeneratorLoss(vae, VAELossOptions(wavelet_loss=True))
