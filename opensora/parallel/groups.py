"""Groups of processes: data parallel across groups, sequence parallel inside a group of neighbouring ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mindspore as ms

from opensora.device import Device
from opensora.errors import UserError


@dataclass(frozen=True)
class Group:
    """Some of the run's processes, in order of rank; `index` is this process's place among them."""

    ranks: tuple
    index: int
    world_size: int
    name: str

    @property
    def size(self) -> int:
        return len(self.ranks)

    @property
    def number(self) -> int:
        """This group's place among the run's groups."""
        return self.ranks[0] // self.size

    @property
    def count(self) -> int:
        """How many groups the run has."""
        return self.world_size // self.size

    @property
    def is_first(self) -> bool:
        """Whether this process speaks and writes for its group."""
        return self.index == 0


def shard_list(items: Sequence, group: Group, equal_counts: bool) -> list[tuple]:
    """The items that fall to a group, as (item, whether it is this group's to keep).

    `equal_counts`: every group gets as many, so that all processes call the same collectives; where items run out, one that
    another group has at that moment is made twice, and one of the two thrown away.
    """
    mine = [(item, True) for item in items[group.number :: group.count]]
    if equal_counts and len(mine) * group.count < len(items):
        mine.append((items[len(mine) * group.count], False))
    return mine


def sequence_group(device: Device, sp_size: int, heads: int) -> Group:
    """The group of `sp_size` neighbouring ranks that this process shares sequences with.

    Raises:
        UserError: sp_size does not divide the number of processes, or the heads do not divide among the group.
    """
    if sp_size < 1 or device.world_size % sp_size:
        sizes = [size for size in range(1, device.world_size + 1) if device.world_size % size == 0]
        raise UserError(
            f"--sp_size {sp_size} does not divide {device.world_size} processes evenly; "
            f"choose one of {', '.join(map(str, sizes))}"
        )
    if heads % sp_size:
        sizes = [size for size in range(1, heads + 1) if heads % size == 0]
        raise UserError(
            f"--sp_size {sp_size}: the model's {heads} attention heads do not divide among so many "
            f"processes; choose one of {', '.join(map(str, sizes))}"
        )
    first = device.rank // sp_size * sp_size
    ranks = tuple(range(first, first + sp_size))
    name = f"sequence_{first}_{sp_size}"
    if device.target == "Ascend" and sp_size > 1:  # a CPU has no groups but the world; not run here
        ms.communication.create_group(name, list(ranks))
    return Group(ranks, device.rank - first, device.world_size, name)
