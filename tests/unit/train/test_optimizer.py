"""AdamW, clipping, EMA, learning rates and loss scaling against stored references and their definitions."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from golden_cases import case, given, load_case, relative_difference
from mindspore import Parameter, Tensor, nn
from zero_checks import assert_same, make_model, make_optimizer, train

from opensora.checkpoint.lazy_tensor import ArrayTensor
from opensora.models.pretrained import PretrainedModel
from opensora.ops.cpu import custom_op
from opensora.train.adamw import AdamW
from opensora.train.ema import EMA
from opensora.train.learning_rate import learning_rate
from opensora.train.loss_scale import GROWTH_INTERVAL, LossScale
from opensora.train.optimizer import Optimizer

CASES = "training_cases.json"


class Weights(PretrainedModel):
    """A model with parameters p0, p1, ... alone."""

    def __init__(self, *values: np.ndarray, dtype=ms.float32):
        super().__init__()
        for i, value in enumerate(values):
            setattr(self, f"p{i}", Parameter(Tensor(value, dtype)))


class Product(nn.Cell):
    """The loss is the sum of each parameter times an input, so that the input is its gradient."""

    def __init__(self, model: Weights):
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, *gradients):
        loss = 0
        for parameter, gradient in zip(self.model.trainable_params(), gradients):
            loss = loss + (parameter.astype(ms.float32) * gradient).sum()
        return loss


@pytest.fixture(params=["kernels", "stock"])
def operators(request, monkeypatch):
    """Runs a test with the C++ kernels and with stock operators."""
    if request.param == "stock":
        monkeypatch.setattr(custom_op, "library", lambda: None)
    elif custom_op.library() is None:
        pytest.skip("no kernels here")


def test_adamw_with_clipping_matches_reference(operators):
    golden, expected = case("train_adamw", CASES), load_case("train_adamw")
    shapes = golden["inputs"]["p0"], golden["inputs"]["p1"]
    model = Weights(*(given("train_adamw", f"p{i}", shape) for i, shape in enumerate(shapes)))
    optimizer = Optimizer(
        model, AdamW(*golden["betas"], golden["eps"], golden["weight_decay"]), max_grad_norm=golden["max_grad_norm"]
    )
    loss = Product(model)
    for step in range(4):
        gradients = [
            given("train_adamw", f"g{i}_{step}", shape) * np.float32(0.1 if step == 2 else 1)
            for i, shape in enumerate(shapes)
        ]
        optimizer.backward(loss, *map(Tensor, gradients))
        done = optimizer.step(golden["lr"])
        assert done.applied and done.norm == pytest.approx(expected["grad_norm"][step], rel=1e-5)
        for i, parameter in enumerate((model.p0, model.p1)):
            assert relative_difference(parameter.asnumpy(), expected[f"p{i}"][step]) < 1e-6


def test_ema_matches_reference(operators):
    golden, expected = case("train_ema", CASES), load_case("train_ema")["shadow"]
    ema = EMA(golden["ema_decay"], golden["ema_start_step"])
    table = golden["decay_table"]
    assert [ema.decay(step) for step in table["steps"]] == pytest.approx(table["decay"])
    weights = given("train_ema", "p0", (6,))
    shadow = Tensor(np.zeros(6, np.float32))
    for i in range(5):
        weights = weights + given("train_ema", f"delta{i}", (6,))
        ema.update(shadow, Tensor(weights), i + 1)
        assert relative_difference(shadow.asnumpy(), expected[i]) < 1e-6
    assert EMA(0.9, ema_start_step=3).decay(4) == 0 < EMA(0.9, ema_start_step=3).decay(5)
    assert EMA(0.999, warm_up=False).decay(1) == 0.999


def test_ema_is_updated_after_each_step():
    model = Weights(np.ones(5, np.float32))
    optimizer = Optimizer(model, AdamW(adam_weight_decay=0.0), EMA(0.9, warm_up=False))
    shadow = model.p0.asnumpy().copy()  # MindSpore 2.7.1 shares the memory
    for _ in range(3):
        optimizer.backward(Product(model), Tensor(np.full(5, 2.0, np.float32)))
        optimizer.step(0.1)
        shadow = 0.9 * shadow + 0.1 * model.p0.asnumpy()
    assert relative_difference(optimizer.ema_weights()["p0"].numpy(), shadow) < 1e-6
    assert relative_difference(optimizer.weights()["p0"].numpy(), np.full(5, 0.7, np.float32)) < 1e-5


@pytest.mark.parametrize("schedule", sorted(case("train_lr", CASES)["lr_at_step"]))
def test_learning_rates_match_reference(schedule):
    golden = case("train_lr", CASES)
    rates = [learning_rate(schedule, step, golden["base_lr"], golden["warmup"], golden["total"]) for step in range(22)]
    assert rates == pytest.approx(golden["lr_at_step"][schedule], abs=1e-12)


@pytest.mark.parametrize("accumulated", [1, 4])
def test_float16_keeps_float32_master_weights(accumulated):
    """Steps below float16's resolution accumulate, and tiny gradients do not underflow."""
    model = Weights(np.ones(4), dtype=ms.float16)
    optimizer = Optimizer(model, AdamW(adam_weight_decay=0.0))
    assert optimizer.bytes()["float32 master weights"] == 16 and optimizer.bytes()["weights"] == 8
    tiny = np.array([1e-8, -1e-8, 1e-6, 2e-8], np.float32)  # some are zero in float16
    for _ in range(20):
        for _ in range(accumulated):
            optimizer.backward(Product(model), Tensor(tiny))
        assert optimizer.step(1e-4).applied
    expected = 1 - 20 * 1e-4 * np.sign(tiny)  # Adam's steps do not depend on the gradient's magnitude
    assert relative_difference(optimizer.weights()["p0"].numpy(), expected) < 1e-4
    assert relative_difference(model.p0.asnumpy(), expected) < 1e-3


def test_overflow_skips_the_step_and_halves_the_loss_scale():
    model = Weights(np.ones(4), np.ones(3), dtype=ms.float16)
    optimizer = Optimizer(model, ema=EMA())
    good = [Tensor(np.full(n, 1e-3, np.float32)) for n in (4, 3)]
    optimizer.backward(Product(model), *good)
    assert optimizer.step(1e-3).applied
    before = {name: tensor.numpy().copy() for name, tensor in optimizer.state_tensors().items()}
    weights = model.p0.asnumpy().copy()
    optimizer.backward(Product(model), good[0], Tensor(np.full(3, 2.0, np.float32)))  # times 2^16 it overflows
    assert not optimizer.step(1e-3).applied
    assert optimizer.loss_scale.value == 2.0**15 and (model.p0.asnumpy() == weights).all()
    for name, tensor in optimizer.state_tensors().items():
        assert (tensor.numpy() == before[name]).all()
    assert {name.split(".")[0] for name in before} == {"exp_avg", "exp_avg_sq", "ema", "master"}


def test_bfloat16_has_no_loss_scale_and_skips_overflow():
    model = Weights(np.ones(4), dtype=ms.bfloat16)
    optimizer = Optimizer(model, AdamW(adam_weight_decay=0.0), ema=EMA())
    assert optimizer.bytes()["float32 master weights"] == 16 and optimizer.bytes()["weights"] == 8
    tiny = np.array([1e-30, -1e-30, 1e-6, 1e10], np.float32)  # float16 has none of the first two and of the last
    optimizer.backward(Product(model), Tensor(tiny))
    assert optimizer.step(1e-4).applied and optimizer.loss_scale.value == 1.0 and not optimizer.loss_scale.dynamic
    before = {name: tensor.numpy().copy() for name, tensor in optimizer.state_tensors().items()}
    optimizer.backward(Product(model), Tensor(np.full(4, np.inf, np.float32)))
    assert not optimizer.step(1e-4).applied and optimizer.loss_scale.value == 1.0
    for name, tensor in optimizer.state_tensors().items():
        assert (tensor.numpy() == before[name]).all()
    optimizer.backward(Product(model), Tensor(tiny))
    assert optimizer.step(1e-4).applied


def test_loss_scale_grows_after_good_steps():
    scale = LossScale(4.0, dynamic=True)
    for _ in range(GROWTH_INTERVAL - 1):
        scale.update(True)
    assert scale.value == 4.0
    scale.update(True)
    assert scale.value == 8.0 and scale.good_steps == 0
    scale.update(False)
    assert scale.value == 4.0
    fixed = LossScale()
    fixed.update(False)
    assert fixed.value == 1.0


def test_resumed_optimizer_equals_uninterrupted_one():
    """Six steps in one run equal three and three, resumed from the stored state."""
    whole = make_model()
    optimizer = make_optimizer(whole)
    train(whole, optimizer, range(3))
    stored = {name: ArrayTensor(tensor.numpy().copy()) for name, tensor in optimizer.state_tensors().items()}
    weights, numbers = whole.torch_state(), optimizer.state_numbers()
    expected = train(whole, optimizer, range(3, 6))

    model = make_model(seed=8)
    model.load_torch_state(weights)
    resumed = make_optimizer(model)
    resumed.load_state(numbers, stored)
    assert train(model, resumed, range(3, 6)) == expected
    assert_same(resumed.weights(), whole.torch_state(), 1e-4)

    name = "exp_avg_sq.proj_out.weight"
    for tensors, message in (
        ({key: value for key, value in stored.items() if key != name}, f"{name} is missing"),
        ({**stored, name: ArrayTensor(np.zeros((2, 3), np.float32))}, rf"{name} is \(2, 3\)"),
    ):
        with pytest.raises(ValueError, match=message):
            resumed.load_state(numbers, tensors)


def test_frozen_parameters_do_not_change():
    model = make_model()
    for parameter in model.transformer_blocks[1].get_parameters():
        parameter.requires_grad = False
    before = model.torch_state()
    train(model, make_optimizer(model), range(1))
    for name, value in model.torch_state().items():
        assert (value == before[name]).all() == name.startswith("transformer_blocks.1."), name


def test_graph_mode_and_gradient_checkpointing_give_the_same_losses():
    expected = train_in(mode=1, gradient_checkpointing=False)
    assert train_in(mode=1, gradient_checkpointing=True) == pytest.approx(expected, rel=1e-5)
    assert train_in(mode=0, gradient_checkpointing=True) == pytest.approx(expected, rel=1e-5)


def train_in(mode: int, gradient_checkpointing: bool) -> list[float]:
    ms.set_context(mode=mode)
    try:
        model = make_model()
        return train(model, make_optimizer(model, gradient_checkpointing=gradient_checkpointing), range(2, 5))
    finally:
        ms.set_context(mode=1)


def test_invalid_settings_are_rejected(mode):
    model = Weights(np.ones(2, np.float32))
    with pytest.raises(ValueError, match="zero_stage 4 is not one of 0, 1, 2, 3"):
        Optimizer(model, zero_stage=4)
    if mode == 0:
        with pytest.raises(ValueError, match="zero_stage 3.*--mode 1"):
            Optimizer(model, zero_stage=3)
    for make, message in (
        (lambda: AdamW(adam_beta2=1.0), r"adam_beta2 1.0 is not in \[0, 1\)"),
        (lambda: AdamW(adam_weight_decay=-1.0), "adam_weight_decay -1.0"),
        (lambda: EMA(1.5), "ema_decay 1.5"),
        (lambda: EMA(ema_start_step=-1), "ema_start_step -1"),
        (lambda: learning_rate("step", 0, 1.0, 0, 1), "lr_scheduler .step. is not one of constant"),
        (lambda: learning_rate("polynomial", 0, 1e-8, 0, 1), "learning_rate 1e-08.*polynomial"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
