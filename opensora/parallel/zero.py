"""ZeRO (Rajbhandari et al. 2020, arXiv:1910.02054): each process keeps a part of what training needs, by stage:

    0  nothing is divided                    2  gradients are divided too
    1  optimizer states are divided          3  weights are divided too

Parameters go in buckets: one for each transformer block, one for the rest. A bucket's numbers lie one behind the other
in a flat buffer, of which every process has an equal part, its own part. Gradients are summed over all processes, those
of one sequence-parallel group too: gathering the prediction hands every member the gradients of all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Optional

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from opensora.checkpoint.lazy_tensor import LazyTensor
from opensora.ops import updates
from opensora.parallel.process_group import World

STAGES = (0, 1, 2, 3)


class Bucket:
    """Parameters of one dtype, by name, with their gradients; what is kept of them depends on the stage.

    Stage 3 lets the model's parameters go between `release` and `gather`.
    """

    def __init__(self, parameters: Mapping[str, Parameter], stage: int, world: World):
        self.parameters = dict(parameters)
        self.stage, self.world = stage, world
        self.dtype = next(iter(self.parameters.values())).dtype
        self.sizes = [parameter.size for parameter in self.parameters.values()]
        self.starts = dict(zip(self.parameters, accumulate(self.sizes, initial=0)))
        self.size = sum(self.sizes)
        parts, index = (world.size, world.rank) if stage else (1, 0)
        self.own_size = -(-self.size // parts)
        self.own_start = index * self.own_size
        self.padding = self.own_size * parts - self.size
        self.gradient: Optional[Tensor] = None
        self.is_whole = True
        # Weights that are whole and float32 need no second copy.
        self.master = self._cut() if stage == 3 or self.dtype != ms.float32 else None
        self.release()

    def own_weights(self) -> Tensor:
        """The own part of the weights, (own_size,) float32, to be changed in place and given to `put_own_weights`."""
        return self._cut() if self.master is None else self.master

    def put_own_weights(self, own: Tensor) -> None:
        """The processes' own parts become the model's weights."""
        if self.is_whole:
            flat = self._joined(own.astype(self.dtype))
            parameters = list(self.parameters.values())
            if (
                self.stage < 3
            ):  # in place: a compiled function goes on reading where the weights were when it was compiled
                updates.unflatten(flat, parameters)
                return
            for parameter, piece in zip(parameters, updates.split_like(flat, parameters)):
                parameter.set_data(piece)  # a view, no copy

    def gather(self) -> None:
        """The model's parameters hold whole weights."""
        if not self.is_whole:
            self.is_whole = True
            self.put_own_weights(self.master)

    def release(self) -> None:
        """Stage 3: the model's parameters keep their shapes, and one NaN each."""
        if self.stage == 3:
            self.is_whole = False
            for parameter in self.parameters.values():
                parameter.set_data(ops.broadcast_to(Tensor([np.nan], self.dtype), parameter.shape))  # a view

    def add_gradients(self, gradients: Sequence[Tensor]) -> None:
        """Adds this process's gradients of the parameters, in their order. Sums of several are float32."""
        flat = updates.flatten(gradients, self.size + self.padding, self.dtype)
        if self.stage >= 2:
            flat = self.world.sum_of_part(flat)
        self.gradient = flat if self.gradient is None else self.gradient.astype(ms.float32) + flat

    def take_gradient(self) -> Tensor:
        """The own part of all that was added since the last call, summed over processes: (own_size,) float32."""
        flat, self.gradient = self.gradient, None
        if self.stage < 2:
            flat = self.world.sum_of_part(flat) if self.stage else self.world.sum(flat)
        return flat.astype(ms.float32)

    def own_part(self, tensors: Mapping[str, LazyTensor]) -> Tensor:
        """The own part of whole tensors named as the parameters, float32; only those that it meets are read."""
        part = np.zeros(self.own_size, np.float32)
        for name, first, last in self._own_places():
            place = self.starts[name] + first - self.own_start
            part[place : place + last - first] = tensors[name].numpy().reshape(-1)[first:last]
        return Tensor(part)

    def whole(self, own: Tensor) -> dict[str, np.ndarray]:
        """The inverse of `own_part`; all processes must call it."""
        flat = self._joined(own).asnumpy()
        return {
            name: flat[start : start + parameter.size].reshape(parameter.shape)
            for (name, parameter), start in zip(self.parameters.items(), self.starts.values())
        }

    def bytes(self) -> dict[str, int]:
        """What this process keeps of weights and gradients now, named as by `opensora.cost_model.memory`."""
        own, is_float32 = 4 * self.own_size, self.dtype == ms.float32
        weights = sum(parameter.nbytes for parameter in self.parameters.values()) if self.is_whole else 0
        master = own if self.master is not None else 0
        return {
            "weights": weights + (master if is_float32 else 0),
            "gradients": 0 if self.gradient is None else self.gradient.nbytes,
            "float32 master weights": 0 if is_float32 else master,
        }

    def _joined(self, own: Tensor) -> Tensor:
        return self.world.join(own) if self.stage else own

    def _own_places(self) -> Iterator[tuple[str, int, int]]:
        """(name, first, last): the elements of parameters that lie in the own part."""
        for (name, start), size in zip(self.starts.items(), self.sizes):
            first = max(self.own_start - start, 0)
            last = min(self.own_start + self.own_size - start, size)
            if first < last:
                yield name, first, last

    def _cut(self) -> Tensor:
        """A float32 copy of the own part of the weights."""
        pieces = [
            self.parameters[name]
            if last - first == self.parameters[name].size
            else self.parameters[name].reshape(-1)[first:last]
            for name, first, last in self._own_places()
        ]
        return updates.flatten(pieces, self.own_size, self.dtype).astype(ms.float32)


class ShardedBlock(nn.Cell):
    """A block whose weights and gradients are divided: called in its place.

    Nothing of the forward pass is kept but its inputs. The backward pass gathers the weights and runs the block once
    more (Chen et al. 2016, arXiv:1604.06174), hands the weights' gradients to the buckets, and lets the weights go.
    PyNative mode.

    Args:
        block: has an attribute `differentiable`, the places of the inputs that gradients flow to.
        buckets: of the block's parameters.
    """

    def __init__(self, block: nn.Cell, buckets: Sequence[Bucket]):
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

        def rerun(*varied):
            return block(
                *(
                    varied[block.differentiable.index(i)] if i in block.differentiable else x
                    for i, x in enumerate(inputs)
                )
            )

        for bucket in buckets:
            bucket.gather()
        varied = [ops.stop_gradient(inputs[i]) for i in block.differentiable]
        of_inputs, of_parameters = self.gradient(rerun, ms.ParameterTuple(parameters))(*varied, sensitivity)
        for bucket in buckets:
            bucket.release()
        add_gradients(buckets, of_parameters)
        found = dict(zip(block.differentiable, of_inputs))
        return tuple(found.get(i) for i in range(len(inputs)))


def add_gradients(buckets: Sequence[Bucket], gradients: Sequence[Tensor]) -> None:
    """Gives each bucket its share of gradients that are in the order of the buckets' parameters."""
    gradients = iter(gradients)
    for bucket in buckets:
        bucket.add_gradients([next(gradients) for _ in bucket.parameters])


def make_buckets(parameters: Mapping[str, Parameter], stage: int, world: World) -> list[Bucket]:
    """A bucket for each dtype among the parameters."""
    dtypes = dict.fromkeys(parameter.dtype for parameter in parameters.values())
    return [Bucket({name: p for name, p in parameters.items() if p.dtype == dtype}, stage, world) for dtype in dtypes]


class WholeTensor:
    """A tensor that is divided among the processes, with the face of a `FileTensor`."""

    dtype = "F32"

    def __init__(self, tensors: GatheredTensors, name: str, shape: tuple):
        self.tensors, self.name, self.shape = tensors, name, shape
        self.nbytes = 4 * int(np.prod(shape))

    def numpy(self) -> np.ndarray:
        return self.tensors.read(self.name)

    def iter_bytes(self) -> Iterator:
        yield np.ascontiguousarray(self.numpy()).reshape(-1).view(np.uint8)


class GatheredTensors(Mapping):
    """Divided tensors by name, gathered when they are read: all processes must read all, in order.

    A bucket's tensors come together; those of the last bucket stay in memory.
    """

    def __init__(self):
        self.places: dict[str, tuple] = {}
        self.last_key, self.last = None, {}

    def add(self, prefix: str, bucket: Bucket, own) -> None:
        """Tensors `prefix` + a parameter's name; `own()` gives the own part of the bucket's."""
        for name, parameter in bucket.parameters.items():
            self.places[prefix + name] = prefix, name, bucket, own, tuple(parameter.shape)

    def read(self, name: str) -> np.ndarray:
        prefix, parameter, bucket, own, _ = self.places[name]
        if self.last_key != (prefix, bucket):
            self.last = {}  # before the next come
            self.last_key, self.last = (prefix, bucket), bucket.whole(own())
        return self.last[parameter]

    def __getitem__(self, name: str) -> WholeTensor:
        return WholeTensor(self, name, self.places[name][-1])

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)
