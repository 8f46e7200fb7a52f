"""From losses to new weights: gradients, clipping, AdamW, EMA; on one process or divided over many (ZeRO)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Callable, NamedTuple, Optional

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from opensora.checkpoint.lazy_tensor import LazyTensor
from opensora.config.options import check_choice
from opensora.errors import UserError
from opensora.models.pretrained import PretrainedModel
from opensora.parallel.process_group import World
from opensora.parallel.zero import STAGES, Bucket, GatheredTensors, ShardedBlock, add_gradients, make_buckets
from opensora.train.adamw import AdamW
from opensora.train.ema import EMA
from opensora.train.loss_scale import LossScale


class Step(NamedTuple):
    """What an optimizer step did: `applied` is False where gradients were not finite, and nothing has changed."""

    norm: float
    applied: bool


class Optimizer:
    """Collects gradients by `backward` and changes the model's weights by `step`.

    Made when the model has its weights, the same on all processes; the trainable ones are trained, in the dtype that
    they have, with float32 master weights where that is a 16-bit one, and with loss scaling where it is float16.

    Args:
        max_grad_norm: of the gradient of all parameters together; None: not clipped.
        zero_stage: what is divided over the processes; see `opensora.parallel.zero`. In graph mode up to 2. On one
            process there is nothing to divide.
        gradient_checkpointing: runs the model's transformer blocks again on the way back instead of keeping what is
            inside. Stage 3 always does, for it has no weights to keep. In PyNative mode it makes stage 2 divide each
            block's gradients at once; else all are there before they are divided.

    Raises:
        UserError: an impossible setting, or weights that differ between processes.
    """

    def __init__(
        self,
        model: PretrainedModel,
        adamw: AdamW = AdamW(),
        ema: Optional[EMA] = None,
        max_grad_norm: Optional[float] = 1.0,
        zero_stage: int = 0,
        world: World = World(),
        gradient_checkpointing: bool = False,
    ):
        graph_mode = ms.get_context("mode") == ms.GRAPH_MODE
        check_choice("--zero_stage", zero_stage, STAGES)
        if zero_stage == 3 and graph_mode:
            raise UserError(
                "--zero_stage 3 gathers weights block by block, which graph mode cannot: use --mode 1, or a lower stage"
            )
        self.adamw, self.ema, self.max_grad_norm, self.world = adamw, ema, max_grad_norm, world
        self.stage = stage = zero_stage if world.size > 1 else 0

        parameters = {name: p for name, p in model.parameters_and_names() if p.requires_grad}
        _check_same(parameters.values(), world)
        blocks = list(getattr(model, "transformer_blocks", ()))
        self.outside, inside = _divide(parameters, blocks, stage, world)
        self.buckets = [*self.outside, *(bucket for buckets in inside for bucket in buckets)]
        if stage == 3 or (stage == 2 and gradient_checkpointing and not graph_mode):
            model.replace_blocks(
                [
                    ShardedBlock(block, buckets) if buckets else block  # none: it is not trained
                    for block, buckets in zip(blocks, inside)
                ]
            )
            self.recorded = self.outside
        else:
            if gradient_checkpointing:
                for block in blocks:
                    block.recompute()
            self.recorded = self.buckets
        self.differentiated: dict[nn.Cell, Callable] = {}

        self.exp_avg = [ops.zeros(bucket.own_size, ms.float32) for bucket in self.buckets]
        self.exp_avg_sq = [ops.zeros(bucket.own_size, ms.float32) for bucket in self.buckets]
        self.shadows = [ops.deepcopy(bucket.own_weights()) for bucket in self.buckets] if ema else []
        self.steps = self.micro_steps = 0
        is_float16 = any(bucket.dtype == ms.float16 for bucket in self.buckets)
        self.loss_scale = LossScale(2.0**16, dynamic=True) if is_float16 else LossScale()

    def backward(self, forward: nn.Cell, *inputs):
        """Runs `forward`, adds the gradients of its loss, and returns what it returned.

        `forward` gives the loss, a scalar, or a tuple that begins with it; the loss of a step is the mean over the
        micro-steps and the processes.
        """
        if forward not in self.differentiated:
            self.differentiated[forward] = ms.value_and_grad(_ScaledLoss(forward), None, self.trained, has_aux=True)
        with self.weights_outside_blocks():
            scale = Tensor(self.loss_scale.value, ms.float32)
            (_, outputs), gradients = self.differentiated[forward](scale, *inputs)
        self.add(gradients)
        return outputs

    def add(self, gradients: Sequence[Tensor]) -> None:
        """Adds gradients of one micro-step, times `loss_scale.value`, in the order of `trained`."""
        add_gradients(self.recorded, gradients)
        self.micro_steps += 1

    @property
    def trained(self) -> list[Parameter]:
        """The parameters that gradients are asked of; those of blocks that are called apart see to themselves."""
        return [parameter for bucket in self.recorded for parameter in bucket.parameters.values()]

    def step(self, learning_rate: float) -> Step:
        """Changes the weights by the mean of the gradients that were added since the last step."""
        gradients = [bucket.take_gradient() for bucket in self.buckets]
        factor = 1 / (self.loss_scale.value * self.micro_steps * self.world.size)
        self.micro_steps = 0
        norm = self._norm(gradients) * factor
        self.loss_scale.update(math.isfinite(norm))
        if not math.isfinite(norm):
            return Step(norm, applied=False)
        if self.max_grad_norm is not None:
            factor *= min(1.0, self.max_grad_norm / (norm + 1e-6))
        self.steps += 1
        for i, bucket in enumerate(self.buckets):
            own = bucket.own_weights()
            self.adamw.update(own, self.exp_avg[i], self.exp_avg_sq[i], gradients[i], factor, learning_rate, self.steps)
            if self.ema:
                self.ema.update(self.shadows[i], own, self.steps)
            bucket.put_own_weights(own)
            gradients[i] = None
        return Step(norm, applied=True)

    @contextmanager
    def weights_outside_blocks(self) -> Iterator[None]:
        """Stage 3: the model can be called meanwhile. Blocks gather their weights themselves."""
        for bucket in self.outside:
            bucket.gather()
        try:
            yield
        finally:
            for bucket in self.outside:
                bucket.release()

    def weights(self) -> GatheredTensors:
        """All trained weights by name, float32."""
        tensors = GatheredTensors()
        for bucket in self.buckets:
            tensors.add("", bucket, bucket.own_weights)
        return tensors

    def ema_weights(self) -> GatheredTensors:
        """Their moving averages, by the same names."""
        tensors = GatheredTensors()
        for bucket, shadow in zip(self.buckets, self.shadows):
            tensors.add("", bucket, lambda own=shadow: own)
        return tensors

    def state_tensors(self) -> GatheredTensors:
        """What is to be stored beside the weights, named `<kind>.<parameter>`; any stage and number of processes
        can go on from it. Kinds: exp_avg, exp_avg_sq; ema; master, float32 weights where the model's have 16 bits."""
        tensors = GatheredTensors()
        for kind, bucket, own in self._kept():
            tensors.add(f"{kind}.", bucket, lambda own=own: own)
        return tensors

    def state_numbers(self) -> dict[str, float]:
        """What is to be stored beside `state_tensors`."""
        return {"steps": self.steps, "loss_scale": self.loss_scale.value, "good_steps": self.loss_scale.good_steps}

    def load_state(self, numbers: Mapping[str, float], tensors: Mapping[str, LazyTensor]) -> None:
        """Goes on from what `state_numbers` and `state_tensors` gave; a kind (ema, master) that was not kept then
        starts from the weights.

        Raises:
            UserError: a tensor is missing or has another shape; nothing is changed.
        """
        found = {name.split(".", 1)[0] for name in tensors} | {"exp_avg", "exp_avg_sq"}
        kept = [(kind, bucket, own) for kind, bucket, own in self._kept() if kind in found]
        for kind, bucket, _ in kept:
            for name, parameter in bucket.parameters.items():
                stored = tensors.get(f"{kind}.{name}")
                if stored is None or tuple(stored.shape) != tuple(parameter.shape):
                    raise UserError(
                        f"optimizer state: {kind}.{name} is "
                        + (
                            "missing"
                            if stored is None
                            else f"{tuple(stored.shape)}, the model's is {tuple(parameter.shape)}"
                        )
                    )
        for kind, bucket, own in kept:
            names = {name: f"{kind}.{name}" for name in bucket.parameters}
            ops.assign(own, bucket.own_part({name: tensors[stored] for name, stored in names.items()}))
        for bucket in self.buckets:
            if bucket.master is not None:
                bucket.put_own_weights(bucket.master)
        self.steps = int(numbers["steps"])
        if self.loss_scale.dynamic:
            self.loss_scale.value = float(numbers["loss_scale"])
            self.loss_scale.good_steps = int(numbers["good_steps"])

    def bytes(self) -> dict[str, int]:
        """What this process keeps now, named as by `opensora.cost_model.memory`, and "ema"."""
        kept = [bucket.bytes() for bucket in self.buckets]
        own = 4 * sum(bucket.own_size for bucket in self.buckets)
        return {
            **{name: sum(one[name] for one in kept) for name in kept[0]},
            "optimizer states": 2 * own,
            "ema": own if self.ema else 0,
        }

    def _kept(self) -> Iterator[tuple[str, Bucket, Tensor]]:
        """(kind, bucket, own part) of all state."""
        kinds = {
            "exp_avg": self.exp_avg,
            "exp_avg_sq": self.exp_avg_sq,
            "ema": self.shadows,
            "master": [bucket.master if bucket.dtype != ms.float32 else None for bucket in self.buckets],
        }
        for kind, parts in kinds.items():
            for bucket, own in zip(self.buckets, parts):
                if own is not None:
                    yield kind, bucket, own

    def _norm(self, gradients: Sequence[Tensor]) -> float:
        """Of all parameters' gradients together, from own parts."""
        squares = ops.stack([gradient.square().sum() for gradient in gradients]).sum().reshape(1)
        if self.stage:
            squares = self.world.sum(squares)
        return math.sqrt(float(squares.asnumpy()[0]))


def _divide(parameters: Mapping[str, Parameter], blocks: Sequence[nn.Cell], stage: int, world: World) -> tuple:
    """(buckets of the parameters outside the blocks, for each block its buckets)."""
    left = dict(parameters)
    inside = []
    for block in blocks:
        own = {id(parameter) for parameter in block.get_parameters()}
        taken = {name: left.pop(name) for name, parameter in parameters.items() if id(parameter) in own}
        inside.append(make_buckets(taken, stage, world))
    return make_buckets(left, stage, world), inside


def _check_same(parameters: Iterable[Parameter], world: World) -> None:
    """Raises UserError where the first numbers of the weights differ between processes."""
    sample = ops.cat([parameter.reshape(-1)[:8].astype(ms.float32) for parameter in parameters])
    samples = world.join(sample).asnumpy().reshape(world.size, -1)
    if not np.array_equal(samples, np.broadcast_to(samples[0], samples.shape), equal_nan=True):
        raise UserError("the processes have different weights: load the same file on all, or use the same --seed")


class _ScaledLoss(nn.Cell):
    """(scale * loss, what `forward` returned)."""

    def __init__(self, forward: nn.Cell):
        super().__init__(auto_prefix=False)
        self.forward = forward

    def construct(self, scale: Tensor, *inputs):
        outputs = self.forward(*inputs)
        loss = outputs[0] if isinstance(outputs, tuple) else outputs
        return loss * scale, outputs
