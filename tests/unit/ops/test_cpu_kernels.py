"""The C++ kernels compared with stock operators on odd shapes, values and gradients."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial

import mindspore as ms
import numpy as np
import pytest
from golden_cases import relative_difference
from mindspore import Tensor, nn, ops
from processes import ROOT

from opensora.ops.activations import bias_gelu_tanh, gelu_tanh
from opensora.ops.attention import attention, mask_to_bias, self_attention, unscaled_attention
from opensora.ops.conv import conv2d, conv3d
from opensora.ops.cpu import build, custom_op
from opensora.ops.cpu import linear as linear_kernels
from opensora.ops.layout import concat, permute, slice_axis, split
from opensora.ops.linear import linear, stacked_linear, stored_linear, widened_weight
from opensora.ops.norms import channel_layer_norm, gated_residual, group_norm, modulated_layer_norm, rms_norm
from opensora.ops.resample import nearest_2x, upsample_bilinear_2x, upsample_linear_2x, upsample_nearest_2x
from opensora.ops.rope import apply_rope, rope_cos, rope_sin

EPS = 1e-6
pytestmark = pytest.mark.skipif(build.library() is None, reason="no kernels here: no CPU target, or no g++")


def normal(*shape, seed: int = 0) -> Tensor:
    return Tensor(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))


def rope(x: Tensor) -> Tensor:
    scales = (1.0, 1.0, 1.0)
    return apply_rope(x, rope_cos(2, 3, 3, 24, scales), rope_sin(2, 3, 3, 24, scales))


def masked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    visible = np.arange(k.shape[1]) < np.array([[k.shape[1]], [max(1, k.shape[1] // 3)]])
    return attention(q, k, v, mask_to_bias(Tensor(visible.astype(np.float32))))


def permuted(x: Tensor) -> Tensor:
    return permute(x, (3, 0, 2, 1))


def middle(x: Tensor) -> Tensor:
    return slice_axis(x, 2, 1, 4)


def halves(x: Tensor) -> Tensor:
    front, back = split(x, 1, 3)
    return ops.cat((2 * front, back**2), 1)


def joined(x: Tensor, y: Tensor) -> Tensor:
    return concat(x, y, 1)


def strided_conv3d(x: Tensor, weight: Tensor, bias: Tensor, cache: Tensor) -> Tensor:
    return conv3d(x, weight, bias, 2, (0, 1, 0, 1), cache)


def causal_conv3d(x: Tensor, weight: Tensor, bias: Tensor, cache: Tensor) -> Tensor:
    return conv3d(x, weight, bias, 1, (1, 1, 1, 1), cache)


def normalized(x: Tensor, modulation: Tensor) -> Tensor:
    return modulated_layer_norm(x, modulation, 1, EPS)


def gated(x: Tensor, modulation: Tensor, y: Tensor) -> Tensor:
    return gated_residual(x, modulation, 2, y)


def rope_of_two(x: Tensor) -> Tensor:
    scales = (1.0, 1.0, 1.0)
    return apply_rope(x, rope_cos(2, 3, 3, 24, scales), rope_sin(2, 3, 3, 24, scales), 2)


def biased_by_distance(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return unscaled_attention(q, k, v, normal(1, q.shape[2], q.shape[1], k.shape[1], seed=9))


CASES = {
    "modulated_layer_norm": (normalized, (3, 17, 37), (3, 6, 37)),
    "modulated_per_frame": (normalized, (2, 3, 5, 7), (2, 3, 3, 7)),
    "modulated_per_clip": (normalized, (2, 3, 5, 7), (2, 1, 3, 7)),
    "gated_residual": (gated, (3, 17, 37), (3, 6, 37), (3, 17, 37)),
    "gated_residual_per_frame": (gated, (2, 3, 5, 7), (2, 3, 3, 7), (2, 3, 5, 7)),
    "rms_norm": (lambda x, w: rms_norm(x, w, EPS), (3, 17, 37), (37,)),
    "channel_layer_norm": (lambda x, w, b: channel_layer_norm(x, w, b, EPS), (2, 3, 5, 7, 23), (5,), (5,)),
    "channel_layer_norm_silu": (
        lambda x, w, b: channel_layer_norm(x, w, b, EPS, True),
        (1, 2, 33, 11, 13),
        (33,),
        (33,),
    ),
    **{
        f"group_norm_{per_frame}_{silu}": (
            lambda x, w, b, per_frame=per_frame, silu=silu: group_norm(x, 4, w, b, EPS, per_frame, silu),
            (2, 3, 8, 5, 9),
            (8,),
            (8,),
        )
        for per_frame in (False, True)
        for silu in (False, True)
    },
    "bias_gelu": (bias_gelu_tanh, (3, 17, 37), (37,)),
    "gelu": (gelu_tanh, (3, 17, 37)),
    "rope": (rope, (2, 18, 4, 24)),
    "rope_of_two": (rope_of_two, (3, 18, 4, 24)),
    "attention": (attention, (2, 31, 3, 24), (2, 31, 3, 24), (2, 31, 3, 24)),
    "attention_long": (attention, (1, 300, 2, 96), (1, 197, 2, 96), (1, 197, 2, 96)),
    "attention_wide": (attention, (3, 50, 1, 512), (3, 50, 1, 512), (3, 50, 1, 512)),
    "attention_few_queries": (masked, (2, 5, 1, 72), (2, 200, 1, 72), (2, 200, 1, 72)),
    "attention_masked": (masked, (2, 100, 2, 8), (2, 63, 2, 8), (2, 63, 2, 8)),
    "attention_biased": (biased_by_distance, (2, 50, 3, 16), (2, 50, 3, 16), (2, 50, 3, 16)),
    "self_attention": (self_attention, (6, 31, 3, 24)),
    "linear": (linear, (2, 37, 50), (70, 50), (70,)),
    "stacked_linear": (stacked_linear, (2, 37, 50), (70, 50), (70,), (70, 50), (70,), (70, 50), (70,)),
    "linear_of_two_rows": (linear, (2, 130), (300, 130), (300,)),
    "linear_to_few": (linear, (190, 33), (5, 33), (5,)),
    "linear_no_bias": (linear, (3, 5, 17), (34, 17)),
    "upsample_linear_2x": (lambda x: upsample_linear_2x(x, 1), (3, 7, 5)),
    "linear_2x_of_one": (lambda x: upsample_linear_2x(x, 1), (4, 1, 6)),
    "nearest_2x": (lambda x: nearest_2x(x, 2), (3, 7, 5)),
    "upsample_bilinear_2x": (upsample_bilinear_2x, (2, 1, 3, 7, 5)),
    "bilinear_pictures_2x_thin": (upsample_bilinear_2x, (1, 1, 2, 4, 1)),
    "upsample_nearest_2x": (upsample_nearest_2x, (2, 1, 3, 7, 5)),
    "permute": (lambda x: permute(x, (0, 2, 1, 3)), (3, 5, 7, 2)),
    "permute_inner": (permuted, (3, 35, 7, 18)),
    "permute_blocks": (lambda x: permute(x, (0, 1, 2, 5, 7, 3, 4, 6)), (1, 2, 2, 3, 4, 2, 5, 2)),
    "part": (middle, (2, 3, 5, 7)),
    "part_other": (lambda x: slice_axis(x, 2, 0, 2), (2, 3, 5, 7)),  # the same shapes, another length
    "cut": (halves, (3, 5, 4)),
    "cut_one_half": (lambda x: split(x, 2, 1)[1], (3, 5, 4)),
    "join": (joined, (3, 5, 4), (3, 2, 4)),
    "join_last": (lambda x, y: concat(x, y, 2), (3, 5, 4), (3, 5, 1)),
    "conv2d": (lambda x, w, b: conv2d(x, w, b, 1, (1, 1, 1, 1)), (2, 3, 11, 9, 13), (17, 11, 3, 3), (17,)),
    "conv2d_wide": (lambda x, w, b: conv2d(x, w, b, 1, (0, 1, 2, 1)), (1, 1, 3, 17, 150), (40, 3, 3, 3), (40,)),
    "conv2d_pointwise": (lambda x, w, b: conv2d(x, w, b), (1, 2, 75, 5, 9), (33, 75, 1, 1), (33,)),
    "conv3d": (causal_conv3d, (2, 5, 4, 6, 8), (7, 4, 3, 3, 3), (7,), (2, 2, 4, 6, 8)),
    "conv3d_cache_of_one_frame": (
        lambda x, w, b, p: conv3d(x, w, b, cache=p),
        (1, 2, 70, 9, 10),
        (24, 70, 3, 3, 3),
        (24,),
        (1, 1, 70, 9, 10),
    ),
    "conv3d_replicate_pad": (
        lambda x, w, b: conv3d(x, w, b, 1, (1, 1, 1, 1), replicate_pad=2),
        (2, 3, 10, 20, 21),
        (48, 10, 3, 3, 3),
        (48,),
    ),
    "conv3d_replicate_pad_of_one": (
        lambda x, w, b: conv3d(x, w, b, 1, (1, 1, 1, 1), replicate_pad=2),
        (2, 1, 5, 4, 4),
        (6, 5, 3, 3, 3),
        (6,),
    ),
    "conv3d_pointwise": (lambda x, w, b: conv3d(x, w, b), (2, 3, 130, 4, 5), (10, 130, 1, 1, 1), (10,)),
    # Large enough for Winograd.
    "conv2d_winograd": (lambda x, w, b: conv2d(x, w, b, 1, (1, 1, 1, 1)), (2, 2, 48, 19, 22), (50, 48, 3, 3), (50,)),
    "conv2d_winograd_pad": (
        lambda x, w, b: conv2d(x, w, b, 1, (0, 1, 2, 1)),
        (1, 2, 64, 20, 17),
        (49, 64, 3, 3),
        (49,),
    ),
    "conv3d_winograd": (causal_conv3d, (2, 3, 48, 13, 17), (52, 48, 3, 3, 3), (52,), (2, 2, 48, 13, 17)),
    "conv3d_winograd_replicate_pad": (
        lambda x, w, b: conv3d(x, w, b, 1, (1, 1, 1, 1), replicate_pad=2),
        (1, 4, 50, 12, 15),
        (48, 50, 3, 3, 3),
        (48,),
    ),
    "conv3d_winograd_unpadded": (lambda x, w, b: conv3d(x, w, b), (1, 5, 48, 18, 18), (48, 48, 3, 3, 3), (48,)),
    "conv2d_winograd_frames_in_blocks": (
        lambda x, w, b: conv2d(x, w, b, 1, (1, 1, 1, 1)),
        (1, 20, 512, 5, 77),
        (48, 512, 3, 3),
        (48,),
    ),
    "conv3d_winograd_outputs_in_blocks": (
        lambda x, w, b: conv3d(x, w, b, 1, (1, 1, 1, 1)),
        (1, 5, 400, 13, 14),
        (130, 400, 3, 3, 3),
        (130,),
    ),
    "conv2d_stride": (lambda x, w, b: conv2d(x, w, b, 2, (0, 1, 0, 1)), (2, 3, 10, 9, 14), (40, 10, 3, 3), (40,)),
    "conv2d_stride_odd": (lambda x, w, b: conv2d(x, w, b, 2, (1, 1, 1, 1)), (1, 2, 35, 9, 70), (6, 35, 3, 3), (6,)),
    "conv2d_stride_unpadded": (lambda x, w, b: conv2d(x, w, b, 2), (1, 1, 3, 75, 66), (4, 3, 3, 3), (4,)),
    "conv3d_stride_replicate_pad": (
        lambda x, w, b: conv3d(x, w, b, 2, (0, 1, 0, 1), replicate_pad=2),
        (2, 5, 40, 8, 6),
        (33, 40, 3, 3, 3),
        (33,),
    ),
    "conv3d_stride_of_one_frame": (
        lambda x, w, b: conv3d(x, w, b, 2, (0, 1, 0, 1), replicate_pad=2),
        (1, 1, 4, 6, 8),
        (5, 4, 3, 3, 3),
        (5,),
    ),
    # An odd width minus the offset of a kernel element would be negative.
    "conv2d_stride_of_two_columns": (
        lambda x, w, b: conv2d(x, w, b, 2, (0, 1, 0, 1)),
        (2, 3, 5, 8, 2),
        (7, 5, 3, 3),
        (7,),
    ),
    "conv2d_stride_of_one_column": (
        lambda x, w, b: conv2d(x, w, b, 2, (0, 0, 2, 2)),
        (1, 2, 5, 8, 1),
        (7, 5, 3, 3),
        (7,),
    ),
    "conv3d_stride_of_two_columns": (strided_conv3d, (1, 4, 3, 2, 2), (6, 3, 3, 3, 3), (6,), (1, 1, 3, 2, 2)),
    "conv3d_stride": (strided_conv3d, (2, 6, 4, 6, 8), (7, 4, 3, 3, 3), (7,), (2, 1, 4, 6, 8)),
}


def values_and_gradients(function, inputs) -> list[np.ndarray]:
    y = function(*inputs)
    weight = normal(*y.shape)
    gradients = ms.grad(lambda *tensors: (function(*tensors) * weight).sum(), tuple(range(len(inputs))))(*inputs)
    return [tensor.asnumpy() for tensor in (y, *(gradients if len(inputs) > 1 else [gradients]))]


@pytest.mark.parametrize("name", CASES)
def test_kernels_compute_what_stock_operators_do(name, monkeypatch):
    function, *shapes = CASES[name]
    inputs = [normal(*shape, seed=number) for number, shape in enumerate(shapes)]
    fused = values_and_gradients(function, inputs)
    monkeypatch.setattr(custom_op, "library", lambda: None)
    assert not custom_op.available(ms.float32)
    for number, (actual, expected) in enumerate(zip(fused, values_and_gradients(function, inputs))):
        assert relative_difference(actual, expected) < 5e-6, number


@pytest.mark.parametrize(
    "name",
    [
        "modulated_layer_norm",
        "attention_masked",
        "conv3d",
        "conv3d_winograd",
        "conv3d_stride",
        "permute_inner",
        "linear",
        "stacked_linear",
        "self_attention",
        "part",
        "cut",
        "join",
        "rope",
        "rope_of_two",
    ],
)
def test_kernels_in_graph_mode(name):
    function, *shapes = CASES[name]
    inputs = [normal(*shape, seed=number) for number, shape in enumerate(shapes)]
    compiled = values_and_gradients(ms.jit(function), inputs)
    for actual, expected in zip(compiled, values_and_gradients(function, inputs)):
        assert relative_difference(actual, expected) < 1e-6


@ops.constexpr
def stored_weights(dtype, k: int) -> Tensor:
    """(70, k), as a constant in graph mode."""
    if dtype == ms.int8:
        return Tensor(np.random.RandomState(1).randint(-127, 128, (70, k)).astype(np.int8))
    return (normal(70, k, seed=1) / k**0.5).astype(dtype)


@pytest.mark.parametrize("compute", [ms.float32, ms.float16, ms.bfloat16], ids=str)
@pytest.mark.parametrize("stored", [ms.bfloat16, ms.float16, ms.int8], ids=str)
@pytest.mark.parametrize("has_bias", [True, False])
def test_stored_weights(stored, compute, has_bias, mode, monkeypatch):
    if compute == ms.bfloat16 and mode == ms.GRAPH_MODE:
        pytest.skip("MindSpore cannot even reshape it on a CPU")
    x, k = normal(2, 37, 96).astype(compute), 96
    weight, bias = stored_weights(stored, k), normal(70, seed=2).astype(compute) if has_bias else None
    scale = (normal(70, k // 32, seed=3) / 1000).astype(ms.float16) if stored == ms.int8 else None

    class Layer(nn.Cell):
        def construct(self, x: Tensor) -> Tensor:
            return stored_linear(x, weight, scale, bias)

    fused = Layer()(x)
    wide = widened_weight(weight, scale, ms.float32).asnumpy().astype(np.float64)
    exact = x.float().asnumpy() @ wide.T + (bias.float().asnumpy() if has_bias else 0)
    rounding = {ms.float32: 1e-6, ms.float16: 1e-3, ms.bfloat16: 8e-3}[compute]  # of stock operators
    assert fused.dtype == compute and fused.shape == (2, 37, 70)
    assert relative_difference(fused.float().asnumpy(), exact) < rounding / (1 if compute == ms.float32 else 2)
    monkeypatch.setattr(custom_op, "library", lambda: None)
    assert not custom_op.available(ms.float32)
    stock = Layer()(x)
    assert stock.dtype == compute and relative_difference(stock.float().asnumpy(), exact) < rounding


def test_inputs_of_another_dtype_are_refused():
    """A kernel reads the bytes of whatever it is given."""
    x, weight, scale = normal(3, 64), Tensor(np.ones((5, 64), np.int8)), Tensor(np.ones((5, 2), np.float16))
    stored_kernel = partial(linear_kernels.stored_linear, widen=widened_weight)
    for call in (
        lambda: stored_kernel(x.astype(ms.float16), weight.astype(ms.bfloat16), None, None),
        lambda: stored_kernel(x, weight.astype(ms.float16), None, normal(5).astype(ms.float16)),
        lambda: stored_kernel(x, weight, scale.astype(ms.float32), None),
        lambda: stored_kernel(x, weight, scale, scale[:, 0]),
        lambda: stored_kernel(x, weight, None, None),
    ):
        with pytest.raises(TypeError, match="linear_.*: inputs of .*Float32.* are required, not "):
            call().asnumpy()
    with pytest.raises(TypeError, match="linear: inputs of one dtype are required, not "):
        linear_kernels.linear(x, weight, None).asnumpy()


def test_large_scores_and_fully_hidden_keys():
    q = normal(1, 40, 1, 16) * 100
    bias = Tensor(np.where(np.arange(150) < 100, -10000, 0).astype(np.float32).reshape(1, 1, 1, 150))
    k, v = normal(1, 150, 1, 16, seed=1), normal(1, 150, 1, 16, seed=2) + 1
    assert (
        relative_difference(attention(q, k, v, bias).asnumpy(), attention(q, k[:, 100:], v[:, 100:]).asnumpy()) < 1e-5
    )


@pytest.mark.parametrize(
    "function, shapes",
    [
        (attention, [(2, 5, 3, 8), (2, 7, 2, 8), (2, 7, 2, 8)]),
        (lambda *x: attention(*x), [(2, 5, 3, 8), (2, 7, 3, 8), (2, 7, 3, 8), (2, 1, 1, 8)]),
        (conv3d, [(1, 3, 5, 4, 4), (7, 6, 3, 3, 3), (7,)]),
        (lambda *x: conv3d(*x[:3], cache=x[3]), [(1, 3, 5, 4, 4), (7, 5, 3, 3, 3), (7,), (1, 2, 5, 4, 3)]),
        (conv3d, [(1, 3, 5, 4, 4), (7, 5, 3, 3, 3), (6,)]),
        (conv2d, [(1, 3, 5, 4, 2), (7, 5, 3, 3), (7,)]),  # smaller than the filter
        (lambda *x: conv2d(*x, 2), [(1, 3, 5, 2, 4), (7, 5, 3, 3), (7,)]),
        (lambda *x: rms_norm(*x, EPS), [(3, 8), (7,)]),
        (normalized, [(2, 3, 8), (2, 3, 7)]),
        (normalized, [(2, 3, 8), (2, 2, 8)]),  # without the scale
        (normalized, [(2, 3, 8), (4, 3, 8)]),
        (lambda *x: channel_layer_norm(*x, EPS), [(1, 1, 5, 2, 2), (4,), (5,)]),
        (lambda *x: group_norm(x[0], 4, *x[1:], EPS), [(1, 1, 6, 2, 2), (6,), (6,)]),
        (bias_gelu_tanh, [(3, 8), (7,)]),
        (gated, [(2, 3, 8), (2, 3, 8), (2, 3, 7)]),
        (gated, [(2, 3, 8), (2, 2, 8), (2, 3, 8)]),
        (self_attention, [(5, 4, 2, 8)]),
        (stacked_linear, [(2, 3, 8), (5, 8), (5,), (5, 7), (5,), (5, 8), (5,)]),
        (rope, [(2, 17, 4, 24)]),
        (linear, [(3, 8), (5, 7), (5,)]),
        (linear, [(3, 8), (5, 8), (4,)]),
        (joined, [(3, 5, 4), (3, 2, 5)]),
        (lambda x: slice_axis(x, 1, 3, 6), [(2, 5, 4)]),
    ],
    ids=str,
)
def test_tensors_that_do_not_fit_are_refused(function, shapes):
    """Otherwise memory beyond a tensor would be read or written."""
    with pytest.raises((RuntimeError, ValueError)):
        function(*[normal(*shape) for shape in shapes]).asnumpy()


@pytest.mark.parametrize("change", [{"PATH": "/nowhere"}, {build.SWITCH: "0"}], ids=["no compiler", "switched off"])
def test_without_kernels_stock_operators_serve(change, tmp_path):
    code = (
        "import mindspore as ms; from opensora.ops.norms import rms_norm; from opensora.ops.cpu.build import library; "
        "print(rms_norm(ms.ops.ones((2, 4)), ms.ops.ones(4), 1e-6).asnumpy().sum(), library())"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path), **change},
    )
    assert finished.stdout.startswith("7.99") and finished.stdout.endswith(" None\n")
    assert finished.stderr.count("no fused CPU kernels (g++ was not found)") == ("PATH" in change)


def test_sizes_that_float32_does_not_hold_are_refused():
    """Settings of kernels are float32."""
    assert custom_op.settings(1 << 24, 1 << 30).shape == (2,)
    with pytest.raises(ValueError, match="16777217"):
        custom_op.settings((1 << 24) + 1)
