"""Groups of processes: data parallelism across groups, sequence parallelism within a group of consecutive ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import mindspore as ms

from opensora.errors import UserError

if TYPE_CHECKING:  # opensora.device imports the collectives
    from opensora.device import Device

Item = TypeVar("Item")


@dataclass(frozen=True)
class Group:
    """A group of the run's processes, in order of rank; `index` is this process's index in the group.

    `all_to_all` is one of `opensora.config.device.ALL_TO_ALL`.
    """

    ranks: tuple[int, ...]
    index: int
    world_size: int
    name: str
    all_to_all: str = "native"

    @property
    def size(self) -> int:
        return len(self.ranks)

    @property
    def number(self) -> int:
        """This group's index among the run's groups."""
        return self.ranks[0] // self.size

    @property
    def count(self) -> int:
        """The number of groups of the run."""
        return self.world_size // self.size

    @property
    def is_first(self) -> bool:
        """Whether this process prints and writes for its group."""
        return self.index == 0


def shard_list(items: Sequence[Item], group: Group, equal_counts: bool) -> list[tuple[Item, bool]]:
    """Every n-th item for a group, as (item, whether the group keeps its result).

    Args:
        equal_counts: give every group the same number of items, so that all processes call the same collectives. A
            group that has one item too few repeats an item of another group and discards the result.
    """
    mine = [(item, True) for item in items[group.number :: group.count]]
    if equal_counts and len(mine) * group.count < len(items):
        mine.append((items[len(mine) * group.count], False))
    return mine


def sequence_group(device: Device, sp_size: int, heads: int) -> Group:
    """The group of `sp_size` consecutive ranks that contains this process.

    Raises:
        UserError: sp_size does not divide the number of processes or of attention heads.
    """
    if sp_size < 1 or device.world_size % sp_size:
        sizes = [size for size in range(1, device.world_size + 1) if device.world_size % size == 0]
        raise UserError(
            f"--sp_size {sp_size} does not divide the {device.world_size} processes; "
            f"choose one of {', '.join(map(str, sizes))}"
        )
    if heads % sp_size:
        sizes = [size for size in range(1, heads + 1) if heads % size == 0]
        raise UserError(
            f"--sp_size {sp_size} does not divide the model's {heads} attention heads; "
            f"choose one of {', '.join(map(str, sizes))}"
        )
    first = device.rank // sp_size * sp_size
    ranks = tuple(range(first, first + sp_size))
    name = f"sequence_{first}_{sp_size}"
    if device.target == "Ascend" and sp_size > 1:  # a CPU has no group but the world; not tested on Ascend
        ms.communication.create_group(name, list(ranks))
    return Group(ranks, device.rank - first, device.world_size, name, device.all_to_all)
