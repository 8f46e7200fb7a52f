"""The comparison of primitives with their references."""

from __future__ import annotations

import ast
from dataclasses import replace

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn, ops
from processes import ROOT

from opensora.doctor.checks import FAILED, OK
from opensora.doctor.layer_cases import layer_cases
from opensora.doctor.primitives import check_backward, check_forward, rows_of
from opensora.doctor.tensor_cases import tensor_cases
from opensora.ops.norms import rms_norm

CASES = {case.name: case for case in [*layer_cases(), *tensor_cases()]}


def test_every_public_function_has_a_case():
    functions = set()
    for path in (ROOT / "opensora/ops").glob("*.py"):
        if path.stem not in ("backend", "precision"):  # the choice between implementations
            defined = [node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
            functions |= {f"{path.stem}.{name}" for name in defined if not name.startswith("_")}
    functions.remove("attention.prepare_attention_mask")  # its result depends on the device; attention masked uses it
    assert len(functions) > 30 and functions == {name.split(" ")[0] for name in CASES}


@pytest.mark.parametrize("name", CASES)
def test_primitive_agrees_with_its_reference(name):
    results = {row: run() for row, run in rows_of([CASES[name]], "fp32").items()}
    assert {row: result.detail for row, result in results.items() if result.status != OK} == {}
    assert all(result.numbers["milliseconds"] >= 0 for result in results.values())
    assert (f"{name} backward" in results) == CASES[name].backward


class HalvedGradient(nn.Cell):
    """`rms_norm` with half the gradient of x."""

    def construct(self, x, weight):
        return rms_norm(x, weight, 1e-6)

    def bprop(self, x, weight, out, dout):
        first, second = ops.grad(lambda x, w: (rms_norm(x, w, 1e-6) * dout).sum(), (0, 1))(x, weight)
        return first / 2, second


class OneWrongGradient(HalvedGradient):
    """`rms_norm` in which a single element of the gradient of x is wrong."""

    def bprop(self, x, weight, out, dout):
        first, second = ops.grad(lambda x, w: (rms_norm(x, w, 1e-6) * dout).sum(), (0, 1))(x, weight)
        wrong = first.asnumpy().copy()
        wrong[1, 2, 3] += 0.5
        return ms.Tensor(wrong), second


@pytest.mark.parametrize("cell", [HalvedGradient, OneWrongGradient])
def test_wrong_gradient_is_found(cell):
    wrong = replace(CASES["norms.rms_norm"], run=cell())
    assert check_forward(wrong, "fp32").status == OK
    result = check_backward(wrong, "fp32")
    assert result.status == FAILED and "of the gradient of input 0" in result.detail


@pytest.mark.parametrize(
    "change, detail",
    [
        (lambda y: y * 1.001, "error 1.0e-03"),
        (lambda y: y + ms.Tensor(np.nan, ms.float32), "error inf"),
        (lambda y: y.astype(ms.float16), "the output is Float16, not Float32"),
    ],
)
def test_wrong_output_is_found(change, detail):
    case = CASES["linear.linear"]
    result = check_forward(replace(case, run=lambda *inputs: change(case.run(*inputs))), "fp32")
    assert result.status == FAILED and detail in result.detail


def test_error_of_16_bits_is_found_in_fp32_and_allowed_in_fp16():
    case = CASES["layout.folded"]

    def run(x):
        return case.run(x.astype(ms.float16)).astype(x.dtype)

    assert check_forward(replace(case, run=run), "fp32").status == FAILED
    assert check_forward(replace(case, run=run), "fp16").status == OK


def test_optimizer_steps_are_checked_in_fp32_only():
    assert rows_of([CASES["updates.adamw"]], "fp32") and not rows_of([CASES["updates.adamw"]], "bf16")
