"""Kernels that are called directly, without MindSpore's launch."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, ops

from opensora.ops.cpu import build, launch, linear, norms

pytestmark = pytest.mark.skipif(build.library() is None, reason="no kernels here: no CPU target, or no g++")


def normal(*shape: int) -> Tensor:
    return Tensor(np.random.default_rng(0).standard_normal(shape, np.float32))


@pytest.fixture
def direct(monkeypatch) -> list[str]:
    """The shapes of the outputs of direct calls."""
    calls: list[str] = []
    empty = launch._empty_on_cpu

    def counted(shape, dtype):
        calls.append(str(shape))
        return empty(shape, dtype)

    monkeypatch.setattr(launch, "_empty_on_cpu", counted)
    return calls


def both_ways(function, *inputs: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The results of a direct call and of MindSpore's launch."""
    called = function(*inputs).asnumpy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "addresses_are_exact", lambda: False)
        return called, function(*inputs).asnumpy()


def test_this_version_of_mindspore_gives_exact_addresses():
    assert launch.addresses_are_exact()


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x,
        lambda x: x[1:],
        lambda x: x[:, 1:],
        lambda x: x[::2],
        lambda x: ops.split(x, 2, 0)[1],
        lambda x: x.swapaxes(0, 1),
        lambda x: x.reshape(2, 6, 8)[1],
        lambda x: x + 1,
        lambda x: x.astype(ms.float16).astype(ms.float32),
    ],
)
def test_inputs_are_read_where_they_are(view, direct):
    x = view(normal(4, 3, 8))
    called, launched = both_ways(lambda x: linear.linear(x, normal(5, 8), normal(5)), x)
    assert direct and np.array_equal(called, launched)


def test_parameters_that_get_other_data():
    x, weight = normal(3, 8), Parameter(normal(5, 8), name="weight")
    linear.linear(x, weight, None)
    for other in (2 * normal(5, 8), Tensor(np.ones((5, 8), np.float32)), normal(7, 8)[2:], normal(8, 5).swapaxes(0, 1)):
        weight.set_data(other)
        expected = x.asnumpy() @ other.asnumpy().T
        assert np.abs(linear.linear(x, weight, None).asnumpy() - expected).max() < 1e-5


def test_results_of_asynchronous_operators_are_complete():
    x = normal(512, 512)
    for _ in range(20):
        x = ops.tanh(x @ x)
        assert np.isfinite(linear.linear(x * 2 - x, normal(8, 512), None).asnumpy()).all()
    expected = x.asnumpy() @ normal(8, 512).asnumpy().T
    assert np.abs(linear.linear(x * 2 - x, normal(8, 512), None).asnumpy() - expected).max() < 1e-3


def test_gradients_are_recorded(direct):
    x, weight = normal(3, 8), normal(5, 8)
    _, gradient = ms.value_and_grad(lambda x: linear.linear(x, weight, None).sum())(x)
    assert np.abs(gradient.asnumpy() - weight.asnumpy().sum(0)).max() < 1e-5
    assert "(3, 5)" not in direct


def test_shapes_that_do_not_fit_are_refused(direct):
    with pytest.raises(RuntimeError, match="modulated_layer_norm failed with status 1"):
        norms.modulated_layer_norm(normal(2, 3, 8), normal(2, 1, 8), 0, 1e-6)
    assert direct
