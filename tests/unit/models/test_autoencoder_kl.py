"""The autoencoder of Stable Diffusion: outputs against the reference, invariants, loading."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from golden_cases import case, case_names, relative_difference
from golden_models import OPENSORA_CASES, build, sd_vae_rows
from mindspore import Tensor, nn
from safetensors.numpy import save_file

from opensora.models import VideoAutoencoderKL

TINY = dict(
    case("sd_vae_odd", OPENSORA_CASES)["config"],
    block_out_channels=[8, 8],
    down_block_types=["DownEncoderBlock2D"] * 2,
    up_block_types=["UpDecoderBlock2D"] * 2,
)
OLD_NAMES = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}


def random(*shape, seed=0) -> Tensor:
    return Tensor(np.random.RandomState(seed).uniform(-1, 1, shape), ms.float32)


@pytest.mark.parametrize("name", case_names("sd_vae_", OPENSORA_CASES))
def test_output_matches_reference(name):
    rows = sd_vae_rows(name)
    assert max(rows.values()) < 1e-4, rows


def test_output_matches_reference_in_graph_mode():
    ms.set_context(mode=0)
    try:
        rows = sd_vae_rows("sd_vae_odd")
    finally:
        ms.set_context(mode=1)
    assert max(rows.values()) < 1e-4, rows


@pytest.mark.parametrize("size", [1, 2, 4, 6, 100])
def test_micro_batches_do_not_change_the_result(size):
    whole, pieces = (build("sd_vae_odd", OPENSORA_CASES, micro_batch_size=n) for n in (None, size))
    x = random(2, 3, 3, 16, 16)
    noise = np.random.RandomState(1).standard_normal((6, 4, 2, 2)).astype(np.float32)
    z = whole.encode(x, lambda k: noise)
    drawn = pieces.encode(x, lambda k: noise[k * size : (k + 1) * size])
    assert relative_difference(drawn.asnumpy(), z.asnumpy()) < 1e-5
    assert relative_difference(pieces.decode(z).asnumpy(), whole.decode(z).asnumpy()) < 1e-5


def test_frames_are_independent():
    vae, x = build("sd_vae_odd", OPENSORA_CASES), random(2, 3, 2, 16, 16)
    z = vae.encode(x, lambda k: np.zeros((4, 4, 2, 2), np.float32))
    alone = vae.encode(x[1:, :, 1:], lambda k: np.zeros((1, 4, 2, 2), np.float32))
    assert relative_difference(z.asnumpy()[1:, :, 1:], alone.asnumpy()) < 1e-5
    assert z.shape == (2, 4, 2, 2, 2) and vae.decode(z).shape == x.shape


def test_encode_without_noise_is_random():
    vae, x = VideoAutoencoderKL(**TINY), random(1, 3, 1, 8, 8)
    assert (vae.encode(x) != vae.encode(x)).any()


@pytest.mark.parametrize(
    "size, expected",
    [((16, 240, 426), (16, 30, 53)), ((1, 512, 512), (1, 64, 64)), ((None, None, None), (None, None, None))],
)
def test_latent_size_is_reported(size, expected):
    vae = VideoAutoencoderKL.without_weights(**case("sd_vae_odd", OPENSORA_CASES)["config"])
    assert vae.get_latent_size(size) == expected and vae.patch_size == (1, 8, 8) and vae.out_channels == 4


def test_odd_sizes_are_rounded_down():
    vae = VideoAutoencoderKL(**TINY)
    assert vae.encode(random(1, 3, 1, 9, 13)).shape == (1, 4, 1, 4, 6)


def test_gradients_reach_every_parameter():
    vae = build("sd_vae_odd", OPENSORA_CASES)

    class Loss(nn.Cell):
        def __init__(self):
            super().__init__(auto_prefix=False)
            self.module = vae.module

        def construct(self, x):
            moments = self.module(x)
            return (self.module.decode(moments[:, :, :4]) - x).square().mean() + moments.square().mean()

    gradients = ms.grad(Loss(), None, vae.trainable_params())(random(1, 2, 3, 16, 16))
    for parameter, gradient in zip(vae.trainable_params(), gradients):
        gradient = gradient.asnumpy()
        # Softmax is invariant to a constant added to all scores, so the key bias has no gradient except rounding.
        assert np.isfinite(gradient).all() and (gradient.any() or "to_k.bias" in parameter.name), parameter.name


def test_old_and_new_names_of_diffusers_load(tmp_path):
    vae = VideoAutoencoderKL(**TINY)
    state = {name[len("module.") :]: value for name, value in vae.torch_state().items()}
    assert "encoder.mid_block.attentions.0.to_out.0.weight" in state
    assert "decoder.up_blocks.0.upsamplers.0.conv.bias" in state
    old = dict(state)
    for name in state:
        for new, former in OLD_NAMES.items():
            if new in name:
                old[name.replace(new, former)] = old.pop(name)
    assert len(set(old) - set(state)) == 16
    for content in (state, old):
        vae.save_pretrained(tmp_path)
        save_file(content, tmp_path / "diffusion_pytorch_model.safetensors")
        loaded = VideoAutoencoderKL.from_pretrained(tmp_path, micro_batch_size=3)
        assert loaded.config.micro_batch_size == 3
        assert all((value == loaded.torch_state()[name]).all() for name, value in vae.torch_state().items())


def test_save_pretrained_round_trip(tmp_path):
    vae = VideoAutoencoderKL(**TINY)
    vae.save_pretrained(tmp_path)
    loaded = VideoAutoencoderKL.from_pretrained(tmp_path)
    assert loaded.config == vae.config
    assert all((value == loaded.torch_state()[name]).all() for name, value in vae.torch_state().items())


@pytest.mark.parametrize(
    "config, message",
    [
        ({"act_fn": "gelu"}, "act_fn 'gelu' is not supported"),
        ({"use_quant_conv": False}, "use_quant_conv"),
        ({"block_out_channels": [8, 6]}, "block_out_channels 6"),
        ({"micro_batch_size": 0}, "micro_batch_size 0"),
        ({"down_block_types": ["AttnDownEncoderBlock2D"] * 2}, "must be 2 times 'DownEncoderBlock2D'"),
        ({"latent_channel": 4}, "did you mean latent_channels"),
    ],
)
def test_invalid_config_is_rejected(config, message):
    with pytest.raises(ValueError, match=message):
        VideoAutoencoderKL(**{**TINY, **config})
