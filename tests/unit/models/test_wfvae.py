"""WFVAE: outputs against the reference, streaming, gradients."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from golden_cases import case_names, gradient_difference, relative_difference
from golden_models import wfvae_rows
from mindspore import Tensor, nn
from tiny_models import VAE

from opensora.models import WFVAEModel
from opensora.models.wfvae.wavelet import (
    HaarTransform2D,
    HaarTransform3D,
    InverseHaarTransform2D,
    InverseHaarTransform3D,
)
from opensora.ops.cpu import custom_op

TIME_8 = dict(
    l1_dowmsample_block="Spatial2xTime2x3DDownsample",
    l1_downsample_wavelet="HaarWaveletTransform3D",
    l1_upsample_block="Spatial2xTime2x3DUpsample",
    l1_upsample_wavelet="InverseHaarWaveletTransform3D",
)


def random(*shape) -> Tensor:
    return Tensor(np.random.RandomState(0).uniform(-1, 1, shape), ms.float32)


@pytest.mark.parametrize("mode", [1, 0], ids=["pynative", "graph"], indirect=True)
@pytest.mark.parametrize("name", case_names("wfvae_"))  # consecutive modes of a case share its model
def test_output_matches_reference(name, mode):
    rows = wfvae_rows(name)
    assert max(rows.values()) < 1e-4, rows


@pytest.mark.parametrize(
    "forward, inverse, frames",
    [(HaarTransform2D, InverseHaarTransform2D, 3), (HaarTransform3D, InverseHaarTransform3D, 5)],
)
def test_inverse_wavelet_inverts(forward, inverse, frames):
    x = random(2, frames, 3, 4, 6)
    # The published 3-D scale, 0.3536, makes the pair 8 * 0.3536^2 = 1.00027 times the identity.
    assert relative_difference(inverse()(forward()(x)).asnumpy(), x.asnumpy()) < 3e-4


@pytest.mark.parametrize("frames", [1, 5, 9, 17, 21])
@pytest.mark.parametrize(
    "options",
    [{}, {"t_interpolation": "nearest"}, TIME_8, {**TIME_8, "t_interpolation": "nearest"}],
    ids=["trilinear", "nearest", "time8-trilinear", "time8-nearest"],
)
def test_tiling_equals_the_whole_clip(frames, options):
    vae = WFVAEModel(**{**VAE, **options})
    stride = vae.config.temporal_stride
    frames = 1 + (frames - 1) * stride // 4
    x = random(1, 3, frames, 16, 16)
    whole_z = vae.encode(x).mean
    whole = vae.decode(whole_z)
    vae.enable_tiling()
    assert relative_difference(vae.encode(x).mean.asnumpy(), whole_z.asnumpy()) < 1e-5
    assert relative_difference(vae.decode(whole_z).asnumpy(), whole.asnumpy()) < 1e-5
    assert whole.shape == x.shape


@pytest.mark.parametrize("t_interpolation", ["nearest", "trilinear"])
def test_group_norm_decodes_even_latent_frames_in_one_chunk(t_interpolation):
    """An odd number is decoded in the published chunks, which change the result; the golden tiled decode has it."""
    vae = WFVAEModel(
        **{
            **VAE,
            "base_channels": 32,
            "encoder_energy_flow_hidden_size": 32,
            "norm_type": "groupnorm",
            "decoder_energy_flow_hidden_size": 32,
            "t_interpolation": t_interpolation,
        }
    )
    for frames in (2, 4, 8, 5):
        vae.enable_tiling(False)
        z = random(1, 8, frames, 2, 2)
        whole = vae.decode(z).asnumpy()
        vae.enable_tiling()
        difference = relative_difference(vae.decode(z).asnumpy(), whole)
        assert difference < 1e-6 if frames % 2 == 0 else difference > 1e-2
    assert vae._decode_chunks(7) == [(0, 2), (1, 4), (3, 6), (5, 7)]


@pytest.mark.parametrize("height, width", [(16, 8), (8, 16), (8, 8), (8, 24)])
def test_small_videos_with_kernels_equal_stock_operators(height, width, monkeypatch):
    """Eight pixels are two columns or rows before the encoder's last strided convolution, and one after it."""
    vae, x = WFVAEModel(**VAE), random(1, 3, 5, height, width)
    differentiate = ms.value_and_grad(lambda x: vae.encode(x).mean.square().sum(), 0, vae.encoder.trainable_params())

    def results() -> list:
        z = vae.encode(x).mean
        _, (of_x, weights) = differentiate(x)
        return [tensor.asnumpy() for tensor in (z, vae.decode(z), of_x, *weights)]

    z, video, *gradients = results()
    monkeypatch.setattr(custom_op, "library", lambda: None)
    stock_z, stock_video, *stock_gradients = results()
    assert relative_difference(z, stock_z) < 1e-5 and relative_difference(video, stock_video) < 1e-5
    assert gradient_difference(gradients, stock_gradients) < 1e-4


def test_batch_gradients_are_sums_over_clips(mode):
    vae = WFVAEModel(**VAE)
    x = random(2, 3, 5, 16, 16)

    class Moments(nn.Cell):
        def __init__(self):
            super().__init__()
            self.encoder = vae.encoder

        def construct(self, video):
            return self.encoder(video)[0].square().sum()

    differentiate = ms.grad(Moments(), 0, vae.encoder.trainable_params())
    together, weights = differentiate(x)
    alone = [differentiate(x[i : i + 1]) for i in range(2)]
    assert relative_difference(together.asnumpy(), np.concatenate([of_x.asnumpy() for of_x, _ in alone])) < 1e-5
    sums = [first.asnumpy() + second.asnumpy() for first, second in zip(alone[0][1], alone[1][1])]
    assert gradient_difference([both.asnumpy() for both in weights], sums) < 1e-4


def test_decoded_chunks_are_small_and_ordered():
    vae = WFVAEModel(**VAE)
    z = random(1, 8, 9, 2, 2)
    chunks = [chunk.asnumpy() for chunk in vae.decode_chunks(z)]
    assert max(chunk.shape[2] for chunk in chunks) <= 10
    assert relative_difference(np.concatenate(chunks, 2), vae.decode(z).asnumpy()) < 1e-5


def test_denormalize_inverts_normalize():
    vae = WFVAEModel(**VAE, scale=[0.5] * 8, shift=list(range(8)))
    z = random(1, 8, 2, 2, 2)
    assert relative_difference(vae.denormalize(vae.normalize(z)).asnumpy(), z.asnumpy()) < 1e-6
    assert np.allclose(vae.normalize(z).asnumpy()[:, 3], (z.asnumpy()[:, 3] - 3) * 0.5)


def test_posterior_sample_and_kl():
    vae = WFVAEModel(**VAE)
    posterior = vae.encode(random(1, 3, 1, 16, 16))
    noise = random(*posterior.mean.shape)
    mean, logvar = posterior.mean.asnumpy(), posterior.logvar.asnumpy()
    assert np.allclose(posterior.sample(noise).asnumpy(), mean + np.exp(logvar / 2) * noise.asnumpy(), atol=1e-6)
    assert np.allclose(posterior.kl().asnumpy(), 0.5 * (mean**2 + np.exp(logvar) - 1 - logvar).sum(), rtol=1e-5)
    assert (posterior.sample() != posterior.sample()).any()


@pytest.mark.parametrize(
    "shape, message",
    [((1, 3, 4, 16, 16), "4n[+]1"), ((1, 3, 5, 12, 16), "multiples of 8"), ((1, 1, 5, 16, 16), "B, 3, T, H, W")],
)
def test_invalid_video_is_rejected(shape, message):
    with pytest.raises(ValueError, match=message):
        WFVAEModel(**VAE).encode(random(*shape))


@pytest.mark.parametrize(
    "config, message",
    [
        ({"norm_type": "batchnorm"}, "batchnorm"),
        ({"latent_dims": 8}, "latent_dims"),
        ({"scale": [1.0]}, "scale"),
        ({"l1_upsample_block": "Spatial2xTime2x3DUpsample"}, "level-1 blocks"),
    ],
)
def test_invalid_config_is_rejected(config, message):
    with pytest.raises(ValueError, match=message):
        WFVAEModel(**config)
