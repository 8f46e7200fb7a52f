"""ZeRO (Rajbhandari et al. 2020, arXiv:1910.02054): the processes shard the training state, by stage:

    0  nothing is sharded                    2  gradients are sharded, too
    1  optimizer states are sharded          3  weights are sharded, too

Parameters are grouped in buckets: one for each transformer block, one for the rest. A bucket's parameters are
concatenated in a flat buffer, of which every process has an equal shard. Gradients are summed over all processes, also
over those of one sequence-parallel group: the backward pass of gathering the prediction gives every member the
gradients of all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Callable, Optional

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from opensora.checkpoint.lazy_tensor import LazyTensor
from opensora.ops import updates
from opensora.parallel.process_group import World

STAGES = (0, 1, 2, 3)


class ParamBucket:
    """Parameters of one dtype, by name, with their gradients; the stage decides which of them are sharded.

    Stage 3 frees the model's parameters between `release` and `gather`.
    """

    def __init__(self, parameters: Mapping[str, Parameter], stage: int, world: World):
        self.parameters = dict(parameters)
        self.stage, self.world = stage, world
        self.dtype = next(iter(self.parameters.values())).dtype
        self.sizes = [parameter.size for parameter in self.parameters.values()]
        self.starts = dict(zip(self.parameters, accumulate(self.sizes, initial=0)))
        self.size = sum(self.sizes)
        shards, index = (world.size, world.rank) if stage else (1, 0)
        self.shard_size = -(-self.size // shards)
        self.shard_start = index * self.shard_size
        self.padding = self.shard_size * shards - self.size
        self.gradient: Optional[Tensor] = None
        self.is_gathered = True
        # Float32 weights that are not sharded need no second copy.
        self.master: Optional[Tensor] = self._shard_weights() if stage == 3 or self.dtype != ms.float32 else None
        self.release()

    def weight_shard(self) -> Tensor:
        """The shard of the weights, (shard_size,) float32, to be updated in place and passed to `set_weights`."""
        return self._shard_weights() if self.master is None else self.master

    def set_weights(self, shard: Tensor) -> None:
        """Sets the model's weights from the processes' shards."""
        if self.is_gathered:
            flat = self._all_gather(shard.astype(self.dtype))
            parameters = list(self.parameters.values())
            if self.stage < 3:  # in place: a compiled function keeps reading the memory it was compiled with
                updates.unflatten(flat, parameters)
                return
            for parameter, view in zip(parameters, updates.split_like(flat, parameters)):
                parameter.set_data(view)  # without a copy

    def gather(self) -> None:
        """Stage 3: gathers the weights into the model's parameters."""
        if self.master is not None and not self.is_gathered:
            self.is_gathered = True
            self.set_weights(self.master)

    def release(self) -> None:
        """Stage 3: frees the parameters' storage; each becomes a broadcast view of one NaN."""
        if self.stage == 3:
            self.is_gathered = False
            for parameter in self.parameters.values():
                parameter.set_data(ops.broadcast_to(Tensor([np.nan], self.dtype), parameter.shape))

    def add_gradients(self, gradients: Sequence[Tensor]) -> None:
        """Accumulates this process's gradients, in the order of the parameters; sums of several are float32."""
        flat = updates.flatten(gradients, self.size + self.padding, self.dtype)
        if self.stage >= 2:
            flat = self.world.reduce_scatter(flat)
        self.gradient = flat if self.gradient is None else self.gradient.astype(ms.float32) + flat

    def take_gradient(self) -> Tensor:
        """The shard of the gradients accumulated since the last call, summed over processes: (shard_size,) float32."""
        flat, self.gradient = self.gradient, None
        if flat is None:
            raise RuntimeError("take_gradient without add_gradients before it")
        if self.stage < 2:
            flat = self.world.reduce_scatter(flat) if self.stage else self.world.all_reduce(flat)
        return flat.astype(ms.float32)

    def shard(self, tensors: Mapping[str, LazyTensor]) -> Tensor:
        """The shard of tensors named as the parameters, float32; only tensors that overlap it are read."""
        shard = np.zeros(self.shard_size, np.float32)
        for name, first, last in self._shard_ranges():
            offset = self.starts[name] + first - self.shard_start
            shard[offset : offset + last - first] = tensors[name].numpy().reshape(-1)[first:last]
        return Tensor(shard)

    def unshard(self, shard: Tensor) -> dict[str, np.ndarray]:
        """The inverse of `shard`; all processes must call it."""
        flat = self._all_gather(shard).asnumpy()
        return {
            name: flat[start : start + parameter.size].reshape(parameter.shape)
            for (name, parameter), start in zip(self.parameters.items(), self.starts.values())
        }

    def bytes(self) -> dict[str, int]:
        """The memory of weights and gradients on this process, with the names of `opensora.cost_model.memory`."""
        shard, is_float32 = 4 * self.shard_size, self.dtype == ms.float32
        weights = sum(parameter.nbytes for parameter in self.parameters.values()) if self.is_gathered else 0
        master = shard if self.master is not None else 0
        return {
            "weights": weights + (master if is_float32 else 0),
            "gradients": 0 if self.gradient is None else self.gradient.nbytes,
            "float32 master weights": 0 if is_float32 else master,
        }

    def _all_gather(self, shard: Tensor) -> Tensor:
        return self.world.all_gather(shard) if self.stage else shard

    def _shard_ranges(self) -> Iterator[tuple[str, int, int]]:
        """(name, first, last): the range of each parameter's elements that lies in the shard."""
        for (name, start), size in zip(self.starts.items(), self.sizes):
            first = max(self.shard_start - start, 0)
            last = min(self.shard_start + self.shard_size - start, size)
            if first < last:
                yield name, first, last

    def _shard_weights(self) -> Tensor:
        """A float32 copy of the shard of the weights."""
        pieces = [
            self.parameters[name]
            if last - first == self.parameters[name].size
            else self.parameters[name].reshape(-1)[first:last]
            for name, first, last in self._shard_ranges()
        ]
        return updates.flatten(pieces, self.shard_size, self.dtype).astype(ms.float32)


class ShardedBlock(nn.Cell):
    """Replaces a block whose weights and gradients are sharded. PyNative mode.

    The forward pass keeps the inputs alone. The backward pass gathers the weights and recomputes the block (Chen et
    al. 2016, arXiv:1604.06174), passes the weights' gradients to the buckets and frees the weights.

    Args:
        block: has an attribute `differentiable`, the indices of the inputs that need gradients.
        buckets: of the block's parameters.
    """

    def __init__(self, block: nn.Cell, buckets: Sequence[ParamBucket]):
        super().__init__(auto_prefix=False)
        self.held = block, tuple(buckets)  # in a tuple: the block stays a child of the model alone
        self.gradient = ops.GradOperation(get_all=True, get_by_list=True, sens_param=True)

    def construct(self, *inputs):
        block, buckets = self.held
        for bucket in buckets:
            bucket.gather()
        output = block(*inputs)
        for bucket in buckets:
            bucket.release()
        return output

    def bprop(self, *args) -> tuple:
        inputs, sensitivity = args[:-2], args[-1]  # between them the output
        block, buckets = self.held
        parameters = [parameter for bucket in buckets for parameter in bucket.parameters.values()]

        def recompute(*varied):
            return block(
                *(
                    varied[block.differentiable.index(i)] if i in block.differentiable else x
                    for i, x in enumerate(inputs)
                )
            )

        for bucket in buckets:
            bucket.gather()
        varied = [ops.stop_gradient(inputs[i]) for i in block.differentiable]
        input_grads, param_grads = self.gradient(recompute, ms.ParameterTuple(parameters))(*varied, sensitivity)
        for bucket in buckets:
            bucket.release()
        add_gradients(buckets, param_grads)
        found = dict(zip(block.differentiable, input_grads))
        return tuple(found.get(i) for i in range(len(inputs)))


def add_gradients(buckets: Sequence[ParamBucket], gradients: Sequence[Tensor]) -> None:
    """Distributes gradients, in the order of the buckets' parameters, to the buckets."""
    remaining = iter(gradients)
    for bucket in buckets:
        bucket.add_gradients([next(remaining) for _ in bucket.parameters])


def make_buckets(parameters: Mapping[str, Parameter], stage: int, world: World) -> list[ParamBucket]:
    """One bucket for each dtype of the parameters."""
    dtypes = dict.fromkeys(parameter.dtype for parameter in parameters.values())
    return [
        ParamBucket({name: p for name, p in parameters.items() if p.dtype == dtype}, stage, world) for dtype in dtypes
    ]


class GatheredTensor(LazyTensor):
    """A sharded tensor: reading it gathers it."""

    dtype = "F32"

    def __init__(self, tensors: GatheredTensors, name: str, shape: tuple):
        self.tensors, self.name, self.shape = tensors, name, shape

    def numpy(self) -> np.ndarray:
        return self.tensors.read(self.name)

    def elements(self) -> np.ndarray:
        return self.numpy()

    def values(self, start: int, count: int) -> np.ndarray:
        return self.numpy().reshape(-1)[start : start + count]

    def iter_bytes(self) -> Iterator:
        yield np.ascontiguousarray(self.numpy()).reshape(-1).view(np.uint8)


class GatheredTensors(Mapping):
    """Sharded tensors by name, gathered when they are read: all processes must read all of them, in order.

    A bucket's tensors are gathered together; those of the last bucket stay in memory.
    """

    def __init__(self):
        self.sources: dict[str, tuple[str, str, ParamBucket, Callable[[], Tensor], tuple]] = {}
        self.last_key: Optional[tuple[str, ParamBucket]] = None
        self.last: dict[str, np.ndarray] = {}

    def add(self, prefix: str, bucket: ParamBucket, shard: Callable[[], Tensor]) -> None:
        """Adds tensors named `prefix` + a parameter's name; `shard` returns the bucket's shard of them."""
        for name, parameter in bucket.parameters.items():
            self.sources[prefix + name] = prefix, name, bucket, shard, tuple(parameter.shape)

    def read(self, name: str) -> np.ndarray:
        prefix, parameter, bucket, shard, _ = self.sources[name]
        if self.last_key != (prefix, bucket):
            self.last = {}  # freed before the next ones are gathered
            self.last_key, self.last = (prefix, bucket), bucket.unshard(shard())
        return self.last[parameter]

    def __getitem__(self, name: str) -> GatheredTensor:
        return GatheredTensor(self, name, self.sources[name][-1])

    def __iter__(self) -> Iterator[str]:
        return iter(self.sources)

    def __len__(self) -> int:
        return len(self.sources)
