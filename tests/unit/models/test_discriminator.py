"""The PatchGAN of images against the reference; that of videos is tested with the losses of VAE training."""

from __future__ import annotations

import pytest
from golden_cases import case_names
from golden_models import DISCRIMINATOR_CASES, discriminator_rows

from opensora.models.discriminator import NLayerDiscriminator


@pytest.mark.parametrize("name", case_names("causalvae_", DISCRIMINATOR_CASES))
def test_image_discriminator_matches_reference(name, mode):
    rows = discriminator_rows(name)
    assert {"train", "eval", "main.9.running_var"} <= set(rows) and max(rows.values()) < 1e-4, rows


def test_activation_normalization_is_refused():
    with pytest.raises(ValueError, match="use_actnorm true is not supported"):
        NLayerDiscriminator(use_actnorm=True)
