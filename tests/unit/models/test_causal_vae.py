"""CausalVAE: outputs against the reference, configurations, loading, precision, gradients."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from golden_cases import case, case_names, given, gradient_difference, load_case, relative_difference
from golden_models import CAUSAL_VAE_CASES, build, causal_vae_rows
from mindspore import Tensor
from processes import slow
from safetensors.numpy import save_file
from tiny_models import CAUSAL_VAE, write_json
from torch_files import SAVERS, as_tensors, same, save_zip

from opensora.checkpoint.convert import convert
from opensora.models import CausalVAEModel, WFVAEModel
from opensora.models.causal_vae.blocks import AttnBlock3D, AttnBlock3DFix
from opensora.ops.cpu import custom_op

WHOLE = [name for name in case_names("causalvae_", CAUSAL_VAE_CASES) if "tiled" not in name]
SIZES = dict(hidden_size=128, hidden_size_mult=[1, 2, 4, 4], num_res_blocks=2)
DTYPES = {"fp16": ms.float16, "bf16": ms.bfloat16}
TOLERANCE = {"fp16": 5e-3, "bf16": 4e-2}  # of the RMS error, relative to the RMS of the values


def random(*shape, seed=0) -> Tensor:
    return Tensor(np.random.RandomState(seed).uniform(-1, 1, shape), ms.float32)


def write_config(folder, generation="v1.2", **changes):
    folder.mkdir(exist_ok=True)
    write_json(folder / "config.json", _class_name="CausalVAEModel", **{**CAUSAL_VAE[generation], **changes})


@pytest.mark.parametrize("mode", [1, 0], ids=["pynative", "graph"], indirect=True)
@pytest.mark.parametrize("name", WHOLE)  # consecutive modes of a case share its model
def test_output_matches_reference(name, mode):
    rows = causal_vae_rows(name)
    assert max(rows.values()) < 1e-4, rows


@pytest.mark.parametrize(
    "generation, parameters, tensors",
    [("v1.0", 229_169_895, 248), ("v1.1", 246_859_499, 260), ("v1.2", 239_189_991, 248)],
)
def test_published_sizes(generation, parameters, tensors):
    vae = CausalVAEModel.without_weights(**{**CAUSAL_VAE[generation], **SIZES})
    sizes = [parameter.size for parameter in vae.get_parameters()]
    assert (sum(sizes), len(sizes)) == (parameters, tensors)
    config = vae.config
    assert (config.latent_dim, config.temporal_stride, config.spatial_stride) == (4, 4, 8)


def test_names_are_the_published_ones():
    shapes = {
        generation: {name: p.shape for name, p in CausalVAEModel.without_weights(**values).parameters_and_names()}
        for generation, values in CAUSAL_VAE.items()
    }
    assert shapes["v1.0"]["encoder.down.0.downsample.conv.conv.weight"] == (32, 32, 1, 3, 3)
    assert shapes["v1.0"]["encoder.mid.attn_1.q.conv.weight"] == (32, 32, 1, 1, 1)
    assert shapes["v1.1"]["encoder.conv_in.weight"] == (32, 3, 3, 3)
    assert shapes["v1.1"]["encoder.down.1.time_downsample.conv.weight"] == (32, 32, 3, 3, 3)
    assert shapes["v1.1"]["decoder.up.2.time_upsample.mix_factor"] == (1,)
    assert shapes["v1.2"]["decoder.up.3.upsample.conv.conv.weight"] == (32, 32, 3, 3, 3)
    assert shapes["v1.2"]["post_quant_conv.conv.weight"] == (4, 4, 1, 1, 1)


def test_missing_keys_are_those_of_v1_0_and_training_keys_are_ignored():
    config = CausalVAEModel.without_weights(
        loss_type="opensora.x", loss_params={"kl_weight": 1e-6}, lr=1e-5, resolution=256, _name_or_path="x"
    ).config
    assert config.encoder_attention == "AttnBlock3D" and config.encoder_conv_in == "CausalConv3d"
    assert config.encoder_temporal_downsample == ("", "TimeDownsample2x", "TimeDownsample2x", "")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"encoder_attention": "AttnBlock"}, "encoder_attention 'AttnBlock' is not one of AttnBlock3D"),
        ({"encoder_spatial_downsample": ["Downsample"] * 3}, "has 3 values, but hidden_size_mult has 4"),
        ({"encoder_temporal_downsample": ["", "", "TimeDownsample2x", ""]}, "space by 8 and time by 2.*by 8 and 4"),
        ({"decoder_temporal_upsample": ["Time"] * 4}, "decoder_temporal_upsample 'Time'"),
        ({"attn_resolutions": [16]}, r"attn_resolutions \(16,\) is not supported"),
        ({"use_quant_layer": False}, "use_quant_layer False"),
        ({"z_chanels": 4}, "did you mean z_channels"),
    ],
)
def test_invalid_config_is_rejected(changes, message):
    with pytest.raises(ValueError, match=message):
        CausalVAEModel(**changes)


def test_attention_of_v1_0_mixes_frames_as_published():
    faulty, fixed = (AttnBlock3D(32, "groupnorm"), AttnBlock3DFix(32, "groupnorm"))
    for mine, other in zip(faulty.get_parameters(), fixed.get_parameters()):
        other.set_data(mine)
    x = random(2, 3, 32, 4, 5)
    q, k, v = (  # (B, C, T, H, W) taken for (B T, C, H W)
        layer(faulty.norm(x)).asnumpy().swapaxes(1, 2).reshape(6, 32, 20) for layer in (faulty.q, faulty.k, faulty.v)
    )
    scores = np.exp(q.swapaxes(1, 2) @ k / np.sqrt(32))
    mixed = (v @ (scores / scores.sum(2, keepdims=True)).swapaxes(1, 2)).reshape(2, 32, 3, 4, 5).swapaxes(1, 2)
    expected = x + faulty.proj_out(Tensor(np.ascontiguousarray(mixed)))
    assert relative_difference(faulty(x).asnumpy(), expected.asnumpy()) < 1e-5
    assert relative_difference(faulty(x).asnumpy(), fixed(x).asnumpy()) > 1e-3
    assert (faulty(x[:, :1]) == fixed(x[:, :1])).all()


@pytest.mark.parametrize("generation", CAUSAL_VAE)
def test_save_pretrained_round_trip(generation, tmp_path):
    vae = CausalVAEModel(**CAUSAL_VAE[generation])
    vae.save_pretrained(tmp_path)
    loaded = CausalVAEModel.from_pretrained(tmp_path)
    assert same(loaded.torch_state(), vae.torch_state()) and loaded.config == vae.config
    other = CausalVAEModel(**CAUSAL_VAE[generation])
    assert other.load_torch_state(vae.torch_state()) == ([], [])
    assert same(other.torch_state(), vae.torch_state())


def test_no_configuration_of_another_generation_or_model_is_loaded(tmp_path):
    CausalVAEModel(**CAUSAL_VAE["v1.1"]).save_pretrained(tmp_path)
    write_config(tmp_path, "v1.2")
    with pytest.raises(ValueError, match="diffusion_pytorch_model.safetensors: weights do not fit CausalVAEModel"):
        CausalVAEModel.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds a CausalVAEModel .*v1.0 to v1.2.; --ae_path needs a WFVAEModel"):
        WFVAEModel.published_config(tmp_path, "--ae_path")


@pytest.mark.parametrize("format", list(SAVERS))
def test_checkpoints_of_the_trainers_load(format, tmp_path):
    """Lightning's of v1.0 and v1.1 with the modules of the loss; v1.2's with EMA weights, which are preferred."""
    vae = CausalVAEModel(**CAUSAL_VAE["v1.2"])
    state = vae.torch_state()
    write_config(tmp_path)
    loss = {"loss.logvar": np.zeros((), np.float32), "loss.discriminator.main.0.weight": np.zeros((2, 3), np.float32)}
    content = {"epoch": 3, "state_dict": as_tensors({**state, **loss}), "optimizer_states": []}
    SAVERS[format](tmp_path / "checkpoint.ckpt", content)
    assert same(CausalVAEModel.from_pretrained(tmp_path).torch_state(), state)

    plain = {name: value + 1 for name, value in state.items()}
    ema = {f"module.{name}": value for name, value in as_tensors(state).items()}
    content = {"ema_state_dict": ema, "state_dict": {"gen_model": as_tensors(plain), "dics_model": as_tensors(loss)}}
    SAVERS[format](tmp_path / "checkpoint.ckpt", content)
    assert same(CausalVAEModel.from_pretrained(tmp_path).torch_state(), state)
    assert same(CausalVAEModel.from_pretrained(tmp_path, use_ema=False).torch_state(), plain)
    SAVERS[format](tmp_path / "checkpoint.ckpt", {**content, "ema_state_dict": {}})
    assert same(CausalVAEModel.from_pretrained(tmp_path).torch_state(), plain)


def test_the_last_checkpoint_of_a_folder_comes_before_safetensors(tmp_path):
    vae = CausalVAEModel(**CAUSAL_VAE["v1.0"])
    states = [{name: value + k for name, value in vae.torch_state().items()} for k in range(3)]
    write_config(tmp_path, "v1.0")
    save_file(states[0], tmp_path / "diffusion_pytorch_model.safetensors")
    assert same(CausalVAEModel.from_pretrained(tmp_path).torch_state(), states[0])
    for name, state in (("step_2.ckpt", states[2]), ("step_1.ckpt", states[1])):
        save_zip(tmp_path / name, {"state_dict": as_tensors(state)})
    assert same(CausalVAEModel.from_pretrained(tmp_path).torch_state(), states[2])
    assert same(CausalVAEModel.from_pretrained(tmp_path / "step_1.ckpt").torch_state(), states[1])


def test_converted_weights_load_and_a_wrong_config_is_refused(tmp_path):
    vae = CausalVAEModel(**CAUSAL_VAE["v1.1"])
    write_config(tmp_path, "v1.1")
    save_zip(tmp_path / "vae.ckpt", {"state_dict": as_tensors(vae.torch_state())})
    target = tmp_path / "converted" / "diffusion_pytorch_model.safetensors"
    write_config(target.parent, "v1.1")
    convert(tmp_path / "vae.ckpt", target, tmp_path / "config.json")
    assert same(CausalVAEModel.from_pretrained(target.parent).torch_state(), vae.torch_state())
    write_config(tmp_path, "v1.1", hidden_size=64)
    with pytest.raises(ValueError, match=r"hidden_size \* hidden_size_mult\[0\] gives 64, but decoder.norm_out.weight"):
        convert(tmp_path / "vae.ckpt", target, tmp_path / "config.json")


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("name", ["causalvae_v1_0_image", "causalvae_v1_1_video", "causalvae_v1_2_even"])
def test_sixteen_bits(name, precision):
    """The error comes from rounding activations to the dtype, about 20 times in a row; norms and mixing are float32."""
    vae, reference = build(name, CAUSAL_VAE_CASES).cast(DTYPES[precision]), load_case(name)
    single = {name for name, p in vae.parameters_and_names() if p.dtype == ms.float32}
    assert single == {name for name, _ in vae.parameters_and_names() if "norm" in name or "mix_factor" in name}
    video = np.clip(given(name, "x", case(name, CAUSAL_VAE_CASES)["inputs"]["x"]["shape"]), -3, 3) / 3
    outputs = {"mean": vae.encode(Tensor(video)).mean, "decode": vae.decode(Tensor(reference["mean"]))}
    for key, value in outputs.items():
        assert value.dtype == ms.float32
        rms = np.sqrt(np.square(value.asnumpy() - reference[key]).mean() / np.square(reference[key]).mean())
        assert TOLERANCE[precision] / 10 < rms < TOLERANCE[precision], (key, rms)


@pytest.mark.parametrize("generation", [slow("v1.0"), slow("v1.1"), "v1.2"])
def test_kernels_equal_stock_operators(generation, monkeypatch):
    """With two channels per group; with one, a bias before a norm has no gradient but rounding."""
    vae, x = CausalVAEModel(**{**CAUSAL_VAE[generation], "hidden_size": 64}), random(2, 3, 6, 32, 16)

    def loss(x: Tensor) -> Tensor:
        mean = vae.encode(x).mean
        return mean.square().sum() + vae.decode(mean).square().mean()

    differentiate = ms.value_and_grad(loss, 0, vae.trainable_params())

    def results() -> list:
        value, (of_x, weights) = differentiate(x)
        return [tensor.asnumpy() for tensor in (value, of_x, *weights)]

    value, *gradients = results()
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    monkeypatch.setattr(custom_op, "library", lambda: None)
    stock_value, *stock_gradients = results()
    assert relative_difference(value, stock_value) < 1e-5
    assert gradient_difference(gradients, stock_gradients) < 1e-4


@pytest.mark.parametrize("frames, latent_frames", [(1, 1), (2, 1), (4, 1), (5, 2), (6, 2), (8, 2), (9, 3)])
def test_any_number_of_frames_is_encoded(frames, latent_frames):
    for values in CAUSAL_VAE.values():
        vae = CausalVAEModel(**values)
        z = vae.encode(random(1, 3, frames, 8, 16)).mean
        assert z.shape == (1, 4, latent_frames, 1, 2)
        assert vae.decode(z).shape == (1, 3, 4 * latent_frames - 3, 8, 16)


def test_latents_are_scaled():
    vae, z = CausalVAEModel(**CAUSAL_VAE["v1.0"]), random(1, 4, 2, 2, 2)
    assert np.allclose(vae.normalize(z).asnumpy(), z.asnumpy() * 0.18215)
    assert relative_difference(vae.denormalize(vae.normalize(z)).asnumpy(), z.asnumpy()) < 1e-6


@pytest.mark.parametrize(
    "shape, message", [((1, 3, 5, 12, 16), "multiples of 8"), ((1, 1, 5, 16, 16), "B, 3, T, H, W")]
)
def test_invalid_video_is_rejected(shape, message):
    vae = CausalVAEModel(**CAUSAL_VAE["v1.0"])
    with pytest.raises(ValueError, match=message):
        vae.encode(random(*shape))
    with pytest.raises(ValueError, match="latents must be .B, 4, T, H, W., not"):
        vae.decode(random(1, 3, 1, 2, 2))
