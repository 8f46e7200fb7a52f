"""Training of a tiny transformer, on one process and sharded; tests/distributed/test_zero.py runs it under msrun."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]  # msrun starts it as a script

from opensora.process.supervision import supervise  # noqa: E402

if __name__ == "__main__":
    supervise()  # under msrun, before MindSpore is imported

import mindspore as ms  # noqa: E402
import numpy as np  # noqa: E402
from golden_cases import relative_difference  # noqa: E402
from mindspore import Tensor, nn  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402
from tiny_models import DIT  # noqa: E402

from opensora import device  # noqa: E402
from opensora.checkpoint.formats.safetensors import read_safetensors, write_safetensors  # noqa: E402
from opensora.config.command_line import run_main  # noqa: E402
from opensora.cost_model import Run, memory  # noqa: E402
from opensora.models import OpenSoraT2V_v1_3  # noqa: E402
from opensora.parallel.groups import sequence_group  # noqa: E402
from opensora.parallel.process_group import World  # noqa: E402
from opensora.parallel.sequence import NoSequenceParallel, UlyssesSequenceParallel  # noqa: E402
from opensora.train.adamw import AdamW  # noqa: E402
from opensora.train.ema import EMA  # noqa: E402
from opensora.train.optimizer import Optimizer  # noqa: E402

CONFIG = {**DIT, "num_layers": 3, "attention_head_dim": 12, "cross_attention_dim": 48}  # two dense blocks, one sparse
STEPS, HALF, BATCH = 8, 4, 4
# Largest relative difference between one process and several: gradients are rounded before they are summed.
TOLERANCES = {"fp32": 1e-4, "fp16": 5e-3, "bf16": 3e-2}


class Loss(nn.Cell):
    def __init__(self, model: nn.Cell):
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, latents: Tensor, timestep: Tensor, text: Tensor, mask: Tensor, target: Tensor) -> Tensor:
        return (self.model(latents, timestep, text, None, mask).astype(ms.float32) - target).square().mean()


def make_model(sequence: nn.Cell = NoSequenceParallel(), seed: int = 5, precision: str = "fp32") -> OpenSoraT2V_v1_3:
    ms.set_seed(seed)
    model = OpenSoraT2V_v1_3(**CONFIG).cast(device.PRECISIONS[precision])
    model.parallelize(sequence)
    return model


def make_optimizer(model: nn.Cell, **settings) -> Optimizer:
    # An epsilon of 1e-15 would scale rounding errors of tiny gradients up to full steps, which differ between runs.
    return Optimizer(model, AdamW(adam_epsilon=1e-6), EMA(), max_grad_norm=0.5, **settings)


def batch(step: int) -> list[np.ndarray]:
    """The inputs of `Loss` for a step of all processes."""
    random = np.random.RandomState(step)
    mask = np.ones((BATCH, 1, 6), np.float32)
    mask[:, :, 4:] = 0
    return [
        random.standard_normal((BATCH, 8, 3, 4, 4)).astype(np.float32),
        random.uniform(0, 1000, BATCH).astype(np.float32),
        random.standard_normal((BATCH, 1, 6, 32)).astype(np.float32),
        mask,
        random.standard_normal((BATCH, 8, 3, 4, 4)).astype(np.float32),
    ]


def train(model: nn.Cell, optimizer: Optimizer, steps: range, samples: slice = slice(None)) -> list[float]:
    """Losses of `samples` of each batch; every fourth step splits them into two micro-batches, if possible."""
    loss, losses = Loss(model), []
    for step in steps:
        inputs = [array[samples] for array in batch(step)]
        pieces = np.array_split(np.arange(len(inputs[0])), 2 if step % 4 == 1 and len(inputs[0]) > 1 else 1)
        values = [float(optimizer.backward(loss, *(Tensor(array[piece]) for array in inputs))) for piece in pieces]
        assert optimizer.step(1e-3).applied
        losses.append(float(np.mean(values)))
    return losses


def save(folder: Path, optimizer: Optimizer, writes: bool = True) -> None:
    """Writes weights and state; the other processes read them, because gathering takes all processes."""
    for name, tensors in (("weights", optimizer.weights()), ("state", optimizer.state_tensors())):
        if writes:
            write_safetensors(folder / f"{name}.safetensors", tensors)
        else:
            for tensor in tensors.values():
                tensor.numpy()


def write_reference(folder: Path, precision: str) -> None:
    """Writes the losses, weights and state of one process, at the end and after half of the steps."""
    model = make_model(precision=precision)
    optimizer = make_optimizer(model)
    losses = train(model, optimizer, range(HALF))
    save(folder / "half", optimizer)
    losses += train(model, optimizer, range(HALF, STEPS))
    assert losses[-1] < losses[0]
    save(folder, optimizer)
    np.save(folder / "losses.npy", np.array(losses, np.float32))


def check_stage(stage: int, checkpointing: bool, reference: Path, dev: device.Device, sp_size: int) -> None:
    """Training equals one process and has the memory of the cost model; stage 3 resumes from one process's state."""
    world = World(dev.rank, dev.world_size)
    group = sequence_group(dev, sp_size, heads=4)
    sequence = UlyssesSequenceParallel(group) if sp_size > 1 else NoSequenceParallel()
    count = BATCH // group.count
    samples = slice(group.number * count, (group.number + 1) * count)
    expected = np.load(reference / "losses.npy")

    tolerance = TOLERANCES[dev.precision]
    model = make_model(sequence, precision=dev.precision)
    optimizer = make_optimizer(model, zero_stage=stage, world=world, gradient_checkpointing=checkpointing)
    losses = train(model, optimizer, range(HALF), samples)
    check_skipped(model, optimizer, samples, dev)
    losses += train(model, optimizer, range(HALF, STEPS), samples)
    assert_same_losses(losses, expected, world, tolerance)
    assert_same(optimizer.weights(), load_file(reference / "weights.safetensors"), tolerance)
    assert_same(optimizer.state_tensors(), load_file(reference / "state.safetensors"), tolerance)
    check_bytes(model, optimizer, samples, dev, stage)
    if stage < 3:
        return  # the other stages gather and store in the same way, or have nothing to gather

    with optimizer.weights_outside_blocks():
        assert np.isfinite(Loss(model)(*(Tensor(array[samples]) for array in batch(0))).asnumpy())
    model = make_model(sequence, precision=dev.precision)
    model.load_torch_state(read_safetensors(reference / "half/weights.safetensors"))
    optimizer = make_optimizer(model, zero_stage=stage, world=world)
    optimizer.load_state(
        {**optimizer.state_numbers(), "steps": HALF}, read_safetensors(reference / "half/state.safetensors")
    )
    losses = train(model, optimizer, range(HALF, HALF + 2), samples)
    assert_same_losses(losses, expected[HALF : HALF + 2], world, tolerance)
    save(reference / f"of_{dev.world_size}_{sp_size}", optimizer, writes=dev.is_main)


def assert_same_losses(losses: list[float], expected: np.ndarray, world: World, tolerance: float) -> None:
    mean = world.all_reduce(Tensor(np.array(losses, np.float32))).asnumpy() / world.size
    assert relative_difference(mean, expected) < tolerance, (mean, expected)


def assert_same(tensors: Mapping, references: Mapping, tolerance: float) -> None:
    """Within `tolerance` of the largest element of a kind: gradients of keys' biases are rounding errors."""
    assert set(tensors) == set(references)
    largest: dict = {}
    for name, expected in references.items():
        kind = name.split(".", 1)[0]
        largest[kind] = max(np.abs(expected).max(), largest.get(kind, 0))
    for name, tensor in tensors.items():
        difference = np.abs(tensor.numpy() - references[name]).max() / largest[name.split(".", 1)[0]]
        assert difference < tolerance, (name, difference)


def check_skipped(model: nn.Cell, optimizer: Optimizer, samples: slice, dev: device.Device) -> None:
    """An infinite loss on one process makes all skip the step; the following steps show that nothing has changed."""
    inputs = [array[samples] for array in batch(0)]
    if dev.rank == dev.world_size - 1:
        inputs[-1] = inputs[-1] + np.float32(np.inf)
    optimizer.backward(Loss(model), *map(Tensor, inputs))
    step = optimizer.step(1e-3)
    assert not step.applied and not np.isfinite(step.norm)


def check_bytes(model: nn.Cell, optimizer: Optimizer, samples: slice, dev: device.Device, stage: int) -> None:
    optimizer.backward(Loss(model), *(Tensor(array[samples]) for array in batch(0)))
    planned = memory(
        Run(
            model.config,
            num_frames=9,
            height=32,
            width=32,
            world_size=dev.world_size,
            precision=dev.precision,
            training=True,
            zero_stage=stage,
        )
    )
    kept = optimizer.bytes()
    for name in ("weights", "gradients", "float32 master weights", "optimizer states"):
        assert planned[name] <= kept[name] < 1.001 * planned[name] + 1, (stage, name, kept[name], planned[name])
    assert kept["ema"] == kept["optimizer states"] // 2
    if dev.is_main:
        print("BYTES", dev.precision, stage, kept, flush=True)
    optimizer.step(0.0)


def check_different_weights(dev: device.Device) -> None:
    try:
        make_optimizer(make_model(seed=dev.rank), world=World(dev.rank, dev.world_size))
    except ValueError as error:
        assert "different weights" in str(error)
    else:
        raise AssertionError("processes with different weights went on")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--reference", type=Path, required=True, help="folder that test_zero.py made")
    parser.add_argument("--sp_size", type=int, required=True)
    parser.add_argument("--stages", nargs="+", required=True, help="0 to 3; 2c with gradient checkpointing")
    device.add_arguments(parser)
    args = parser.parse_args()
    dev = device.setup(args)
    check_different_weights(dev)
    for stage in args.stages:
        check_stage(int(stage[0]), stage.endswith("c"), args.reference, dev, args.sp_size)
    print("CHECKED", dev.rank)


if __name__ == "__main__":
    run_main(main)
