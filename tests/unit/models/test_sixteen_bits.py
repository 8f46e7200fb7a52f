"""Models in float16 and bfloat16 on a CPU."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from golden_cases import relative_difference
from golden_models import OPENSORA_CASES, build, stdit_inputs
from mindspore import Tensor, nn, ops
from sixteen_bits import DEMO, measure

from opensora.models import MT5EncoderModel, OpenSoraT2V_v1_3, WFVAEModel
from opensora.ops.attention import attention, self_attention
from opensora.ops.cpu.custom_op import has_sgemm
from opensora.ops.linear import linear, stacked_linear
from opensora.ops.norms import gated_residual, modulated_layer_norm, rms_norm

DTYPES = {"fp16": ms.float16, "bf16": ms.bfloat16}
# The errors of the published implementation under PyTorch's bf16 autocast, and in float16, for the demo weights:
# the largest error and the RMS error, relative to those of the values.
AUTOCAST = {"DiT": (8.7e-3, 7.1e-3), "WFVAE, encode": (4.5e-3, 3.2e-3), "WFVAE, decode": (2.2e-2, 6.9e-3)}
FLOAT16 = (2.7e-3, 2.7e-3)
TOLERANCE = {"fp16": 2e-3, "bf16": 2e-2}


def test_errors_do_not_exceed_those_of_the_published_implementation():
    errors = measure(count=1)
    assert set(errors) == set(DTYPES)
    for model, (largest, rms) in errors["bf16"].items():
        limits = AUTOCAST.get(model.split(", timestep")[0])
        if limits is not None:
            assert largest <= limits[0] and rms <= limits[1], (model, largest, rms)
        assert rms > 1e-3, f"{model}: the error is too small for bfloat16 activations"
    for model, (largest, rms) in errors["fp16"].items():
        assert largest <= FLOAT16[0] and rms <= FLOAT16[1], (model, largest, rms)
        assert rms > 1e-4, f"{model}: the error is too small for float16 activations"


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_weights_are_16_bits_except_norms_and_modulation(dtype):
    for model, folder in ((OpenSoraT2V_v1_3, "transformer"), (WFVAEModel, "vae"), (MT5EncoderModel, "text_encoder")):
        loaded = model.from_pretrained(DEMO / folder, dtype)
        single = {name for name, p in loaded.parameters_and_names() if p.dtype == ms.float32}
        assert single == loaded.float32_parameters()
        assert all(p.dtype == dtype for name, p in loaded.parameters_and_names() if name not in single)
        assert all(any(word in name for word in ("norm", "adaln_single", "scale_shift_table")) for name in single)
        if model is OpenSoraT2V_v1_3:
            assert {
                "scale_shift_table",
                "transformer_blocks.0.scale_shift_table",
                "adaln_single.linear.weight",
            } <= single


@pytest.mark.parametrize("precision", DTYPES)
def test_stdit2(precision):
    name = "stdit2_qknorm_xmask"
    inputs = stdit_inputs(name)
    expected = build(name, OPENSORA_CASES)(**inputs).asnumpy()
    model = build(name, OPENSORA_CASES).cast(DTYPES[precision])
    assert model.t_block[1].weight.dtype == ms.float32 and model.blocks[0].attn.qkv.weight.dtype == DTYPES[precision]
    difference = relative_difference(model(**inputs).asnumpy(), expected)
    assert TOLERANCE[precision] / 100 < difference < TOLERANCE[precision]


@pytest.mark.parametrize("precision", DTYPES)
def test_timesteps_are_not_rounded(precision):
    """bfloat16 would make 904 of 901."""
    model = OpenSoraT2V_v1_3.from_pretrained(DEMO / "transformer", DTYPES[precision])
    exact = OpenSoraT2V_v1_3.from_pretrained(DEMO / "transformer")
    for value in (901.0, 903.5):
        timestep = Tensor(np.array([value], np.float32))
        for found, expected in zip(model.adaln_single(timestep), exact.adaln_single(timestep)):
            assert found.dtype == ms.float32 and (found.asnumpy() == expected.asnumpy()).all()


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_primitives_round_once(dtype):
    """The result is that of float32 arithmetic on the rounded inputs, rounded."""
    rng = np.random.default_rng(0)

    def tensor(*shape):
        return Tensor(rng.standard_normal(shape, dtype=np.float32)).astype(dtype)

    x, weight, bias, modulation = tensor(2, 6, 32), tensor(48, 32), tensor(48), tensor(2, 3, 32).astype(ms.float32)
    heads, scale = tensor(2, 6, 4, 8), tensor(32).astype(ms.float32)
    cases = {
        "linear": (linear, (x, weight, bias)),
        "attention": (attention, (heads, heads, heads)),
        "self-attention": (self_attention, (tensor(6, 6, 4, 8),)),
        "three layers": (stacked_linear, (x, weight, bias, weight, bias, weight, bias)),
        "layer norm": (lambda *v: modulated_layer_norm(*v, 0, 1e-6), (x, modulation)),
        "residual": (lambda x, m, y: gated_residual(x, m, 2, y), (x, modulation, x)),
        "rms norm": (lambda *v: rms_norm(*v, 1e-6), (x, scale)),
    }
    for name, (primitive, arguments) in cases.items():
        result = primitive(*arguments)
        expected = primitive(*[value.astype(ms.float32) for value in arguments])
        assert result.dtype == dtype, name
        assert (result.astype(ms.float32).asnumpy() == expected.astype(dtype).astype(ms.float32).asnumpy()).all(), name


class Squares(nn.Cell):
    """The mean square of a transformer's prediction."""

    def __init__(self, model):
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, *inputs):
        return ops.square(self.model(*inputs).astype(ms.float32)).mean()


@pytest.mark.parametrize("precision", DTYPES)
def test_gradients(precision):
    rng = np.random.default_rng(0)
    config = OpenSoraT2V_v1_3.published_config(DEMO / "transformer")
    inputs = (
        Tensor(rng.standard_normal((1, config["in_channels"], 2, 8, 8), dtype=np.float32)),
        Tensor(np.array([500.0], np.float32)),
        Tensor(rng.standard_normal((1, 1, 8, config["caption_channels"]), dtype=np.float32)),
        Tensor(np.ones((1, 2, 8, 8), np.float32)),
        Tensor((np.arange(8) < 5).astype(np.float32)[None, None]),
    )
    gradients = {}
    for dtype in (ms.float32, DTYPES[precision]):
        model = OpenSoraT2V_v1_3.from_pretrained(DEMO / "transformer", dtype).set_train()
        found = ms.value_and_grad(Squares(model), None, model.trainable_params())(*inputs)[1]
        gradients[dtype] = np.concatenate([gradient.astype(ms.float32).asnumpy().ravel() for gradient in found])
        assert all(gradient.dtype == parameter.dtype for gradient, parameter in zip(found, model.trainable_params()))
    exact, rounded = gradients.values()
    assert np.linalg.norm(rounded - exact) / np.linalg.norm(exact) < 5 * TOLERANCE[precision]


@pytest.mark.skipif(not has_sgemm(), reason="the kernels are not available")
def test_kernels_reject_mixed_dtypes():
    from opensora.ops.cpu.norms import gated_residual as kernel

    x = Tensor(np.zeros((1, 4, 8), np.float32))
    with pytest.raises(TypeError, match="gated_residual: inputs of one dtype"):
        kernel(x, x[:, :1], 0, x.astype(ms.float16))
