"""Blocks of a model whose weights are read from their file while they are needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Union

import mindspore as ms
from mindspore import nn

from opensora.checkpoint.lazy_tensor import LazyTensor
from opensora.models.stored_weights import HeldWeight, WeightLoader
from opensora.ops.backend import on_cpu
from opensora.ops.cpu.runtime import return_freed_memory


class BlockStream:
    """Iterates over the blocks of a model; each has its weights while it is the current one. PyNative mode.

    At most two blocks are in memory: a thread reads the next one while the current one computes. The numbers are those
    of a loaded model, so the results are the same bit for bit.

    Args:
        blocks: the blocks, in the order of their computation.
        tensors: for each block the tensors of its parameters, by their names in the model.
        loader: of the model.
        source: the file, for warnings.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Cell],
        tensors: Sequence[Mapping[str, LazyTensor]],
        loader: WeightLoader,
        source: Union[str, Path],
    ):
        self.blocks, self.tensors, self.loader, self.source = tuple(blocks), tuple(tensors), loader, source

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, some: slice) -> BlockStream:
        """The stream of consecutive blocks."""
        return BlockStream(self.blocks[some], self.tensors[some], self.loader, self.source)

    def __iter__(self) -> Iterator[nn.Cell]:
        with ThreadPoolExecutor(1, thread_name_prefix="weights") as reader:
            following = reader.submit(self._read, 0)
            for index, block in enumerate(self.blocks):
                held = following.result()
                if index + 1 < len(self.blocks):
                    following = reader.submit(self._read, index + 1)
                for name, weight in held.items():
                    self.loader.set(name, weight)
                del held
                try:
                    yield block
                finally:
                    if not on_cpu():
                        ms.runtime.synchronize()  # operators that are waiting to run need the weights
                    for name, tensor in self.tensors[index].items():
                        self.loader.release(name)
                        tensor.drop_pages()
                    return_freed_memory()
        self.loader.warn(self.source)

    def only(self, *layers: str) -> BlockStream:
        """The stream of the same blocks with the weights of some of their layers, such as attn2.to_k, alone."""
        chosen = [
            {name: tensor for name, tensor in tensors.items() if any(f".{layer}." in name for layer in layers)}
            for tensors in self.tensors
        ]
        return BlockStream(self.blocks, chosen, self.loader, self.source)

    def _read(self, index: int) -> dict[str, HeldWeight]:
        return {name: self.loader.read(name, tensor, may_map=True) for name, tensor in self.tensors[index].items()}
