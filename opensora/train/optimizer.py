"""Gradients, clipping, AdamW and EMA, on one process or sharded over many (ZeRO)."""

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
from opensora.parallel.zero import STAGES, GatheredTensors, ParamBucket, ShardedBlock, add_gradients, make_buckets
from opensora.train.adamw import AdamW
from opensora.train.ema import EMA
from opensora.train.loss_scale import LossScale


class Step(NamedTuple):
    """The norm of the gradients; `applied` is False if they were not finite and nothing has changed."""

    norm: float
    applied: bool


class Optimizer:
    """`backward` accumulates gradients, `step` updates the model's weights.

    Create it after the model's weights were loaded, which must be the same on all processes. The trainable parameters
    are trained in their dtype, with float32 master weights for 16-bit ones and with loss scaling for float16.

    Args:
        max_grad_norm: of the gradients of all parameters together; None: no clipping.
        zero_stage: what is sharded over the processes; see `opensora.parallel.zero`. In graph mode at most 2. It has
            no effect on one process.
        gradient_checkpointing: recompute the model's transformer blocks in the backward pass instead of keeping their
            activations. Stage 3 always does. In PyNative mode it lets stage 2 shard each block's gradients at once;
            otherwise all gradients exist before they are sharded.

    Raises:
        UserError: an invalid setting, or weights that differ between processes.
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
                "--zero_stage 3 gathers weights block by block, which graph mode does not support: use --mode 1, or a "
                "lower stage"
            )
        self.adamw, self.ema, self.max_grad_norm, self.world = adamw, ema, max_grad_norm, world
        self.stage = stage = zero_stage if world.size > 1 else 0

        parameters = {name: p for name, p in model.parameters_and_names() if p.requires_grad}
        _check_same(parameters.values(), world)
        blocks = model.ordered_blocks()
        self.outside, inside = _group(parameters, blocks, stage, world)
        self.buckets = [*self.outside, *(bucket for buckets in inside for bucket in buckets)]
        if stage == 3 or (stage == 2 and gradient_checkpointing and not graph_mode):
            model.replace_blocks(
                [
                    ShardedBlock(block, buckets) if buckets else block  # a frozen block has no buckets
                    for block, buckets in zip(blocks, inside)
                ]
            )
            self.recorded = self.outside
        else:
            if gradient_checkpointing:
                for block in blocks:
                    block.recompute()
            self.recorded = self.buckets
        is_partly_frozen = any(not parameter.requires_grad for parameter in model.get_parameters())
        self.needs_input_gradient = self.recorded is self.outside and is_partly_frozen
        self.differentiated: dict[nn.Cell, Callable] = {}

        self.exp_avg = [ops.zeros(bucket.shard_size, ms.float32) for bucket in self.buckets]
        self.exp_avg_sq = [ops.zeros(bucket.shard_size, ms.float32) for bucket in self.buckets]
        self.shadows = [ops.deepcopy(bucket.weight_shard()) for bucket in self.buckets] if ema else []
        self.steps = self.micro_steps = 0
        is_float16 = any(bucket.dtype == ms.float16 for bucket in self.buckets)
        self.loss_scale = LossScale(2.0**16, dynamic=True) if is_float16 else LossScale()

    def backward(self, forward: nn.Cell, *inputs):
        """Runs `forward`, accumulates the gradients of its loss, and returns its output.

        `forward` returns the loss, a scalar, or a tuple that begins with it. The loss of a step is the mean over the
        micro-steps and the processes.
        """
        if forward not in self.differentiated:
            # The backward pass of a `ShardedBlock` runs only if one of its inputs needs a gradient. If layers before
            # the blocks are frozen, that of the latents makes sure of it.
            position = 1 if self.needs_input_gradient else None
            weights = self.trained or None
            self.differentiated[forward] = ms.value_and_grad(_ScaledLoss(forward), position, weights, has_aux=True)
        with self.weights_outside_blocks():
            scale = Tensor(self.loss_scale.value, ms.float32)
            (_, outputs), gradients = self.differentiated[forward](scale, *inputs)
        if self.needs_input_gradient:
            gradients = gradients[1] if self.trained else ()
        self.add(gradients)
        return outputs

    def add(self, gradients: Sequence[Tensor]) -> None:
        """Accumulates gradients of one micro-step, times `loss_scale.value`, in the order of `trained`."""
        add_gradients(self.recorded, gradients)
        self.micro_steps += 1

    @property
    def trained(self) -> list[Parameter]:
        """The parameters that `backward` differentiates; a `ShardedBlock` handles its own."""
        return [parameter for bucket in self.recorded for parameter in bucket.parameters.values()]

    def step(self, learning_rate: float) -> Step:
        """Updates the weights with the mean of the gradients that were accumulated since the last step."""
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
            weights, gradient = bucket.weight_shard(), gradients.pop(0)  # frees each gradient after its use
            self.adamw.update(weights, self.exp_avg[i], self.exp_avg_sq[i], gradient, factor, learning_rate, self.steps)
            if self.ema:
                self.ema.update(self.shadows[i], weights, self.steps)
            bucket.set_weights(weights)
        return Step(norm, applied=True)

    @contextmanager
    def weights_outside_blocks(self) -> Iterator[None]:
        """Stage 3: gathers the weights outside the blocks, so that the model can be called; blocks gather their own."""
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
            tensors.add("", bucket, bucket.weight_shard)
        return tensors

    def ema_weights(self) -> GatheredTensors:
        """The moving averages of the weights, by the same names."""
        tensors = GatheredTensors()
        for bucket, shadow in zip(self.buckets, self.shadows):
            tensors.add("", bucket, _returning(shadow))
        return tensors

    def state_tensors(self) -> GatheredTensors:
        """The state besides the weights, named `<kind>.<parameter>`; the same for all stages and numbers of processes.

        Kinds: exp_avg, exp_avg_sq; ema; master, the float32 weights of a 16-bit model.
        """
        tensors = GatheredTensors()
        for kind, bucket, shard in self._shards():
            tensors.add(f"{kind}.", bucket, _returning(shard))
        return tensors

    def state_numbers(self) -> dict[str, float]:
        """The state besides `state_tensors`."""
        return {"steps": self.steps, "loss_scale": self.loss_scale.value, "good_steps": self.loss_scale.good_steps}

    def load_state(self, numbers: Mapping[str, float], tensors: Mapping[str, LazyTensor]) -> None:
        """Resumes from `state_numbers` and `state_tensors`; an absent kind (ema, master) starts from the weights.

        Raises:
            UserError: a tensor is missing or has another shape; nothing is changed.
        """
        found = {name.split(".", 1)[0] for name in tensors} | {"exp_avg", "exp_avg_sq"}
        shards = [(kind, bucket, shard) for kind, bucket, shard in self._shards() if kind in found]
        for kind, bucket, _ in shards:
            for name, parameter in bucket.parameters.items():
                stored = tensors.get(f"{kind}.{name}")
                if stored is None:
                    raise UserError(f"optimizer state: {kind}.{name} is missing")
                if tuple(stored.shape) != tuple(parameter.shape):
                    raise UserError(
                        f"optimizer state: {kind}.{name} is {tuple(stored.shape)}, the model's is "
                        f"{tuple(parameter.shape)}"
                    )
        for kind, bucket, shard in shards:
            ops.assign(shard, bucket.shard({name: tensors[f"{kind}.{name}"] for name in bucket.parameters}))
        for bucket in self.buckets:
            if bucket.master is not None:
                bucket.set_weights(bucket.master)
        self.steps = int(numbers["steps"])
        if self.loss_scale.dynamic:
            self.loss_scale.value = float(numbers["loss_scale"])
            self.loss_scale.good_steps = int(numbers["good_steps"])

    def bytes(self) -> dict[str, int]:
        """The memory on this process, with the names of `opensora.cost_model.memory`, and "ema"."""
        buckets = [bucket.bytes() for bucket in self.buckets]
        shards = 4 * sum(bucket.shard_size for bucket in self.buckets)
        return {
            **{name: sum(bucket[name] for bucket in buckets) for name in buckets[0]},
            "optimizer states": 2 * shards,
            "ema": shards if self.ema else 0,
        }

    def _shards(self) -> Iterator[tuple[str, ParamBucket, Tensor]]:
        """(kind, bucket, shard) of all state tensors."""
        kinds: dict[str, Sequence[Optional[Tensor]]] = {
            "exp_avg": self.exp_avg,
            "exp_avg_sq": self.exp_avg_sq,
            "ema": self.shadows,
            "master": [bucket.master if bucket.dtype != ms.float32 else None for bucket in self.buckets],
        }
        for kind, shards in kinds.items():
            for bucket, shard in zip(self.buckets, shards):
                if shard is not None:
                    yield kind, bucket, shard

    def _norm(self, gradients: Sequence[Tensor]) -> float:
        """The norm of all parameters' gradients together, from their shards."""
        squares = ops.stack([gradient.square().sum() for gradient in gradients]).sum().reshape(1)
        if self.stage:
            squares = self.world.all_reduce(squares)
        return math.sqrt(float(squares.asnumpy()[0]))


def _group(
    parameters: Mapping[str, Parameter], blocks: Sequence[nn.Cell], stage: int, world: World
) -> tuple[list[ParamBucket], list[list[ParamBucket]]]:
    """(buckets of the parameters outside the blocks, the buckets of each block)."""
    outside = dict(parameters)
    inside = []
    for block in blocks:
        ids = {id(parameter) for parameter in block.get_parameters()}
        block_parameters = {name: outside.pop(name) for name, p in parameters.items() if id(p) in ids}
        inside.append(make_buckets(block_parameters, stage, world))
    return make_buckets(outside, stage, world), inside


def _returning(shard: Tensor) -> Callable[[], Tensor]:
    return lambda: shard


def _check_same(parameters: Iterable[Parameter], world: World) -> None:
    """Raises UserError if the first elements of the weights differ between processes."""
    sample = ops.cat([parameter.reshape(-1)[:8].astype(ms.float32) for parameter in parameters])
    samples = world.all_gather(sample).asnumpy().reshape(world.size, -1)
    if not np.array_equal(samples, np.broadcast_to(samples[0], samples.shape), equal_nan=True):
        raise UserError("the processes have different weights: load the same file on all, or use the same --seed")


class _ScaledLoss(nn.Cell):
    """(scale * loss, the output of `forward`)."""

    def __init__(self, forward: nn.Cell):
        super().__init__(auto_prefix=False)
        self.forward = forward

    def construct(self, scale: Tensor, *inputs):
        outputs = self.forward(*inputs)
        loss = outputs[0] if isinstance(outputs, tuple) else outputs
        return loss * scale, outputs
