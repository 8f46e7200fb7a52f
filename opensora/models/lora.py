"""Low-rank adaptation, LoRA (Hu et al. 2021, arXiv:2106.09685): adapters of the linear layers of a model.

An adapted layer computes W x + b + factor B A x, with A (r, in), B (out, r) and factor = alpha / r. W stays as it is.
It may be stored in fewer bits (`opensora.models.stored_weights`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Optional

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from opensora.checkpoint.lora.files import LowRank
from opensora.config.lora_training import PLAIN_NAME
from opensora.config.options import did_you_mean
from opensora.errors import UserError
from opensora.models.common.layers import ADAPTER, Linear, WeightLayer
from opensora.models.pretrained import PretrainedModel
from opensora.ops.linear import add_low_rank
from opensora.ops.precision import cast

A, B = (f".{ADAPTER}.{factor}" for factor in "AB")  # ends of the names of the parameters


class LowRankUpdate(nn.Cell):
    """y + factor B A x over the last axis: x (..., in), y (..., out) -> (..., out)."""

    def __init__(self, a: np.ndarray, b: np.ndarray, factor: float, dtype, dropout: Optional[nn.Cell] = None):
        super().__init__()
        self.A = Parameter(Tensor(a).astype(dtype))
        self.B = Parameter(Tensor(b).astype(dtype))
        self.factor = factor
        self.dropout = dropout

    def construct(self, x: Tensor, y: Tensor) -> Tensor:
        if self.dropout is not None:
            x = self.dropout(x)
        return add_low_rank(y, x, self.A, self.B, self.factor)


@dataclass
class DropoutSeed:
    """The seed of the masks of a forward pass. None: no dropout, as in validation."""

    value: Optional[tuple[int, ...]] = None


class AdapterDropout(nn.Cell):
    """Zeroes elements with probability `p` and divides the others by 1 - p. PyNative mode only.

    The mask depends on the seed of the forward pass and on the layer alone, so that recomputation in the backward pass
    draws it again.
    """

    def __init__(self, p: float, layer: int, seed: DropoutSeed):
        super().__init__()
        self.p, self.layer, self.seed = p, layer, seed

    def construct(self, x: Tensor) -> Tensor:
        if self.seed.value is None:
            return x
        generator = np.random.default_rng([*self.seed.value, self.layer])
        mask = (generator.random(x.shape, np.float32) >= self.p).astype(np.float32) / (1 - self.p)
        return cast(cast(x, ms.float32) * Tensor(mask), x.dtype)


def linear_layers(model: nn.Cell) -> dict[str, Linear]:
    """The linear layers of a model by name."""
    return {name: cell for name, cell in model.cells_and_names() if isinstance(cell, Linear)}


def linear_shapes(model: nn.Cell) -> dict[str, tuple[int, int]]:
    """(out, in) of the linear layers of a model by name."""
    return {name: tuple(layer.weight.shape) for name, layer in linear_layers(model).items()}


def select_layers(names: Iterable[str], targets: Sequence[str]) -> list[str]:
    """Those of `names` that `targets` select, as in PEFT.

    Args:
        targets: ends of names, whole components such as to_q or ff.net.2; or one regular expression for whole names.

    Raises:
        UserError: a target selects nothing, or is not a regular expression.
    """
    names = list(names)
    if len(targets) == 1 and not PLAIN_NAME.fullmatch(targets[0]):
        try:
            pattern = re.compile(targets[0])
        except re.error as error:
            raise UserError(f"--lora_target_modules {targets[0]!r}: not a regular expression: {error}") from error
        chosen = [name for name in names if pattern.fullmatch(name)]
        if not chosen:
            raise UserError(
                f"--lora_target_modules {targets[0]!r} matches none of the linear layers, such as {names[0]}"
            )
        return chosen
    for target in targets:
        if not any(_ends_with(name, target) for name in names):
            ends = sorted({re.sub(r"^\w+\.\d+\.", "", name) for name in names})
            raise UserError(
                f"--lora_target_modules {target}: the model has no such linear layer{did_you_mean(target, ends)}; "
                f"it has {', '.join(ends)}"
            )
    return [name for name in names if any(_ends_with(name, target) for target in targets)]


def _ends_with(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def initial_adapters(shapes: Mapping[str, tuple[int, int]], rank: int, alpha: float, seed: int) -> dict[str, LowRank]:
    """New adapters of layers (out, in): A is uniform as in PEFT (Kaiming with a = sqrt(5)), B is zero."""
    adapters = {}
    for number, (name, (outputs, inputs)) in enumerate(shapes.items()):
        a = np.random.default_rng([seed, number]).uniform(-1, 1, (rank, inputs)) / np.sqrt(inputs)
        adapters[name] = LowRank(a.astype(np.float32), np.zeros((outputs, rank), np.float32), alpha / rank)
    return adapters


def add_trainable(model: nn.Cell, adapters: Mapping[str, LowRank], dropout: float = 0.0) -> DropoutSeed:
    """Adds adapters to a model, of which they alone are trained.

    Returns:
        The seed of the dropout, to be set before every forward pass.

    Raises:
        UserError: dropout in graph mode.
    """
    if dropout and ms.get_context("mode") == ms.GRAPH_MODE:
        raise UserError(f"--lora_dropout {dropout} needs PyNative mode: use --mode 1, or no dropout")
    for parameter in model.get_parameters():
        parameter.requires_grad = False
    for _, cell in model.cells_and_names():
        if isinstance(cell, WeightLayer):
            cell.frozen = True
    layers, seed = linear_layers(model), DropoutSeed()
    for number, (name, adapter) in enumerate(adapters.items()):
        mask = AdapterDropout(dropout, number, seed) if dropout else None
        update = LowRankUpdate(adapter.a, adapter.b, adapter.factor, layers[name].dtype(), mask)
        _attach(name, layers[name], update)
    return seed


def _attach(name: str, layer: Linear, update: LowRankUpdate) -> None:
    layer.lora = update
    # Graph mode needs names that are unique in the model, which a Cell that is added later does not get by itself.
    update.A.name, update.B.name = name + A, name + B


@dataclass
class LoadedLoRA:
    """The adapters of a file, and the factor of all of them."""

    adapters: Mapping[str, LowRank]
    scale: float = 1.0

    def factors(self, layer: str) -> tuple[np.ndarray, np.ndarray]:
        """A and scale factor B of a layer."""
        adapter = self.adapters[layer]
        return adapter.a, np.float32(self.scale * adapter.factor) * adapter.b


@dataclass
class LoRAs:
    """The LoRAs of a model in inference, by name. The updates of a layer are one update of the sum of their ranks."""

    loaded: dict[str, LoadedLoRA] = field(default_factory=dict)

    def apply(self, model: PretrainedModel) -> None:
        """Sets the updates of all layers."""
        model.forget_graphs()
        for name, layer in linear_layers(model).items():
            factors = self._factors(name)
            if factors is None:
                layer.lora = None
            else:
                _attach(name, layer, LowRankUpdate(*factors, factor=1, dtype=layer.dtype()).set_train(False))

    def apply_scales(self, model: nn.Cell) -> None:
        """Sets the scales of LoRAs that were applied; compiled graphs have them, too."""
        for name, layer in linear_layers(model).items():
            factors = self._factors(name)
            if factors is not None and layer.lora is not None:
                ops.assign(layer.lora.B, Tensor(factors[1]).astype(layer.lora.B.dtype))

    @property
    def parameters(self) -> int:
        """The number of their elements."""
        return sum(lora.a.size + lora.b.size for loaded in self.loaded.values() for lora in loaded.adapters.values())

    def _factors(self, layer: str) -> Optional[tuple[np.ndarray, np.ndarray]]:
        """The rows of A and the columns of B of all LoRAs that adapt a layer."""
        found = [lora.factors(layer) for lora in self.loaded.values() if layer in lora.adapters]
        if not found:
            return None
        rows, columns = zip(*found)
        return np.concatenate(rows, 0), np.concatenate(columns, 1)


def adapter_tensors(tensors: Mapping) -> dict[str, tuple]:
    """The pairs (A, B) by layer, from tensors by the names of their parameters."""
    return {name[: -len(A)]: (tensors[name], tensors[name[: -len(A)] + B]) for name in tensors if name.endswith(A)}


def parameter_tensors(pairs: Mapping[str, tuple]) -> dict:
    """The inverse of `adapter_tensors`."""
    return {name + end: tensor for name, pair in pairs.items() for end, tensor in zip((A, B), pair)}
