"""The losses of VAE training: of the autoencoder (the generator) and of the discriminator.

The generator's loss is (Esser et al. 2021, arXiv:2012.09841; Li et al. 2024, arXiv:2411.17459, section 3.3)

    nll + kl_weight KL + wavelet_weight WL + w g

with the reconstruction error and its perceptual distance (nll), the posterior's KL divergence (KL), the difference of
the wavelet coefficients in encoder and decoder (WL), and the adversarial loss (g). The weight w balances the gradients
of nll and g at the decoder's last layer W: w = disc_weight |d nll / dW| / |d g / dW|.

CausalVAE has no wavelet coefficients, and its loss no WL.

nll and g depend on the model only through the reconstruction. Therefore the gradients of each with respect to the
reconstruction are computed first. Propagated from the reconstruction to W, they give the two norms. One backward pass
through the model then propagates their weighted sum. Every network runs backward once, and LPIPS and the discriminator
keep no activations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Optional, Union

import mindspore as ms
from mindspore import Tensor, nn, ops

from opensora.errors import UserError
from opensora.models.causal_vae import networks
from opensora.models.common.distribution import DiagonalGaussian
from opensora.models.discriminator import PatchDiscriminator
from opensora.models.lpips import LPIPS
from opensora.models.vaes import VAE
from opensora.models.wfvae import decoder
from opensora.models.wfvae.model import WFVAEModel
from opensora.ops.layout import swap_frames_channels
from opensora.train.vae_options import VAELossOptions

LastLayer = Union[decoder.LastLayer, networks.LastLayer]
FRAMES = 4  # compared at a time: bounds memory for any number and length of clips


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """The hinge loss of the discriminator's logits of real and reconstructed videos (Lim and Ye 2017,
    arXiv:1705.02894)."""
    return 0.5 * (ops.relu(1 - real).mean() + ops.relu(1 + fake).mean())


def vanilla_loss(real: Tensor, fake: Tensor) -> Tensor:
    """The cross-entropy loss of the same logits (Goodfellow et al. 2014, arXiv:1406.2661)."""
    return 0.5 * (_softplus(-real).mean() + _softplus(fake).mean())


def _softplus(x: Tensor) -> Tensor:
    return ops.relu(x) + ops.log1p(ops.exp(-ops.abs(x)))


LOSS_TYPES = {"l1": ops.abs, "l2": ops.square}
DISC_LOSSES = {"hinge": hinge_loss, "vanilla": vanilla_loss}


class GeneratorLoss(nn.Cell):
    """The loss of a VAE, to be differentiated with respect to the VAE's parameters in PyNative mode.

    Args:
        video: (B, 3, T, H, W) in [-1, 1].
        noise: of the posterior sample, in the shape of its mean; None: random.
        adversarial: whether the discriminator contributes.

    Returns:
        The loss and the values named in `metrics`, which have no gradient.
    """

    metrics = ("nll_loss", "kl_loss", "wl_loss", "d_weight", "g_loss")

    def __init__(
        self,
        vae: VAE,
        options: VAELossOptions,
        lpips: Optional[LPIPS] = None,
        discriminator: Optional[PatchDiscriminator] = None,
    ):
        """
        Raises:
            UserError: graph mode, a perceptual_weight without LPIPS, or a wavelet loss of a model without wavelets.
        """
        super().__init__(auto_prefix=False)
        if ms.get_context("mode") == ms.GRAPH_MODE:
            raise UserError("the VAE is trained in PyNative mode: use --mode 1")
        if options.perceptual_weight > 0 and lpips is None:
            raise UserError(f"perceptual_weight {options.perceptual_weight} needs the weights of LPIPS")
        if options.wavelet_loss and not isinstance(vae, WFVAEModel):
            raise UserError(f"--wavelet_loss: {type(vae).__name__} has no wavelet coefficients; leave it out")
        self.vae, self.options = vae, options
        self.reconstruction_loss = AdaptiveAdversarialLoss(vae.last_layer(), options, lpips, discriminator)

    def construct(self, video: Tensor, noise: Optional[Tensor] = None, adversarial: bool = False) -> tuple:
        posterior, *encoder_levels = self.vae.encode_with_coefficients(video)
        reconstruction, *decoder_levels, last_input = self.vae.decode_with_coefficients(posterior.sample(noise))
        last_input = last_input.astype(ms.float32)
        return self.compare(video, reconstruction, last_input, posterior, encoder_levels, decoder_levels, adversarial)

    def compare(
        self,
        video: Tensor,
        reconstruction: Tensor,
        last_input: Optional[Tensor],
        posterior: DiagonalGaussian,
        encoder_levels: Sequence[Tensor],
        decoder_levels: Sequence[Tensor],
        adversarial: bool,
    ) -> tuple:
        """The loss of given outputs of the VAE; levels are wavelet coefficients (B, C, T, H, W), if there are any."""
        loss, _, d_weight, g = self.reconstruction_loss(reconstruction, video, last_input, adversarial)
        nll = loss - d_weight * g
        kl = posterior.kl().mean()
        differences = [a - b for a, b in zip(encoder_levels, decoder_levels)]
        wavelet = sum((ops.abs(difference).sum() for difference in differences), Tensor(0.0)) / video.shape[0]
        loss = loss + self.options.kl_weight * kl
        if self.options.wavelet_loss:
            loss = loss + self.options.wavelet_weight * wavelet
        return loss, tuple(ops.stop_gradient(value) for value in (nll, kl, wavelet, d_weight, g))


class AdaptiveAdversarialLoss(nn.Cell):
    """nll + w g of a reconstruction, with its gradient computed in the forward pass.

    The functions compiled here keep no activations for the backward pass of this Cell. The discriminator's weights may
    be updated in place, but not replaced.

    Args:
        last_input: the input of the decoder's last layer, float32.

    Returns:
        nll + w g, its gradient with respect to the reconstruction, w and g.
    """

    def __init__(
        self,
        last_layer: LastLayer,
        options: VAELossOptions,
        lpips: Optional[LPIPS],
        discriminator: Optional[PatchDiscriminator],
    ):
        super().__init__(auto_prefix=False)
        self.options = options
        self.last_weight = last_layer.weight
        self.error = ms.jit(ms.value_and_grad(FrameError(options, lpips)))
        self.adversarial = None
        if discriminator is not None:
            self.adversarial = ms.jit(ms.value_and_grad(AdversarialLoss(discriminator)))
        self.last_weight_gradient = ms.jit(ms.grad(LastLayerGrad(last_layer)))

    def construct(self, reconstruction: Tensor, video: Tensor, last_input: Tensor, adversarial: bool) -> tuple:
        nll, gradient = self._likelihood(reconstruction, video)
        if not adversarial:
            return nll, gradient, Tensor(0.0), Tensor(0.0)
        if self.adversarial is None:
            raise ValueError("the adversarial loss needs a discriminator")
        g, g_gradient = self.adversarial(reconstruction)
        weight = self.last_weight.astype(ms.float32)
        nll_norm, g_norm = [
            ops.norm(self.last_weight_gradient(weight, last_input, dout)) for dout in (gradient, g_gradient)
        ]
        d_weight = ops.clamp(nll_norm / (g_norm + 1e-4), 0.0, 1e4) * self.options.disc_weight
        return nll + d_weight * g, gradient + d_weight * g_gradient, d_weight, g

    # No tensor may be returned twice: its gradient would arrive only once.
    def bprop(
        self, reconstruction: Tensor, video: Tensor, last_input: Tensor, adversarial: bool, out: tuple, dout: tuple
    ) -> tuple:
        return out[1] * dout[0], ops.zeros_like(video), ops.zeros_like(last_input), adversarial

    def _likelihood(self, reconstruction: Tensor, video: Tensor) -> tuple:
        """The negative log-likelihood of a frame, and its gradient with respect to the reconstruction."""
        b, c, t, h, w = video.shape
        pairs = zip(
            *[ops.split(swap_frames_channels(clip).reshape(b * t, c, h, w), FRAMES) for clip in (reconstruction, video)]
        )
        errors, gradients = zip(*[self.error(*pair) for pair in pairs])
        scale = math.exp(-self.options.logvar_init) / (b * t)
        nll = scale * sum(errors) + self.options.logvar_init * c * h * w
        return nll, swap_frames_channels(scale * ops.cat(gradients).reshape(b, t, c, h, w))


class FrameError(nn.Cell):
    """The error of frames (N, 3, H, W), summed over pixels, plus their weighted perceptual distance."""

    def __init__(self, options: VAELossOptions, lpips: Optional[LPIPS]):
        super().__init__(auto_prefix=False)
        self.difference = LOSS_TYPES[options.loss_type]
        self.perceptual_weight = options.perceptual_weight
        self.lpips = lpips if options.perceptual_weight > 0 else None

    def construct(self, reconstruction: Tensor, frames: Tensor) -> Tensor:
        error = self.difference(frames - reconstruction).sum()
        if self.lpips is not None:
            _, c, h, w = frames.shape
            distance = self.lpips(frames, reconstruction).sum()
            error = error + self.perceptual_weight * c * h * w * distance
        return error


class AdversarialLoss(nn.Cell):
    """g: the negated mean of the discriminator's logits of a reconstruction."""

    def __init__(self, discriminator: PatchDiscriminator):
        super().__init__(auto_prefix=False)
        self.discriminator = discriminator

    def construct(self, reconstruction: Tensor) -> Tensor:
        return -logits(self.discriminator, reconstruction).mean()


class LastLayerGrad(nn.Cell):
    """A scalar whose gradient with respect to the last layer's `weight`, float32, is that of a loss.

    The decoder is linear from its last layer on, and what else the video consists of does not depend on the weight.

    Args:
        gradient: of the loss with respect to the video.
    """

    def __init__(self, last_layer: LastLayer):
        super().__init__(auto_prefix=False)
        self.last_layer = last_layer

    def construct(self, weight: Tensor, last_input: Tensor, gradient: Tensor) -> Tensor:
        return (self.last_layer(weight, last_input) * gradient).sum()


def logits(discriminator: PatchDiscriminator, video: Tensor) -> Tensor:
    """The discriminator's logits of a video (B, 3, T, H, W), or of each of its frames."""
    if discriminator.dims == 2:
        b, c, t, h, w = video.shape
        video = swap_frames_channels(video).reshape(b * t, c, h, w)
    return discriminator(video)


class DiscriminatorLoss(nn.Cell):
    """The discriminator's loss on a video and its reconstruction, and its mean logits of each, for logging."""

    metrics = ("logits_real", "logits_fake")

    def __init__(self, discriminator: PatchDiscriminator, options: VAELossOptions):
        super().__init__(auto_prefix=False)
        self.discriminator = discriminator
        self.loss = DISC_LOSSES[options.disc_loss]

    def construct(self, video: Tensor, reconstruction: Tensor) -> tuple:
        real, fake = logits(self.discriminator, video), logits(self.discriminator, reconstruction)
        return self.loss(real, fake), (ops.stop_gradient(real.mean()), ops.stop_gradient(fake.mean()))
