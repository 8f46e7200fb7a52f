"""The PatchGAN of images against the reference; that of videos is tested with the losses of VAE training."""

from __future__ import annotations

import numpy as np
import pytest
from golden_cases import case, given, load_case, relative_difference, weight
from golden_models import CAUSAL_VAE_CASES
from mindspore import Tensor

from opensora.models.discriminator import NLayerDiscriminator

NAME = "causalvae_v1_0_disc"


def test_image_discriminator_matches_reference(mode):
    description, reference = case(NAME, CAUSAL_VAE_CASES), load_case(NAME)
    network = NLayerDiscriminator(**description["config"])
    constants = ("running_mean", "running_var", "num_batches_tracked")
    network.load_torch_state(
        {
            key: value if key.endswith(constants) else weight(NAME, key, value.shape)
            for key, value in network.torch_state().items()
        }
    )
    x = Tensor(np.clip(given(NAME, "x", description["inputs"]["x"]["shape"]), -3, 3) / 3)
    outputs = {}
    for key, training in (("train", True), ("eval", False)):
        network.set_train(training)
        outputs[key] = network(x).asnumpy()
    state = network.torch_state()
    outputs.update({key: state[key] for key in reference if key.startswith("main.")})
    assert set(outputs) == set(reference)
    differences = {key: relative_difference(value, reference[key]) for key, value in outputs.items()}
    assert max(differences.values()) < 1e-4, differences


def test_activation_normalization_is_refused():
    with pytest.raises(ValueError, match="use_actnorm true is not supported"):
        NLayerDiscriminator(use_actnorm=True)
