"""Groups of processes.

Consecutive ranks make one video together, other groups of them make other videos (data parallelism). Within such a
group, consecutive ranks share the tokens (sequence parallelism), and the ranks at the same position of its two halves
compute one row of guidance each. Of 8 processes with sp_size 2 and cfg_size 2, ranks 0 to 3 make the first video:
0 and 1 share the tokens of the negative prompt's row, 2 and 3 those of the prompt's row, 0 and 2 exchange their rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Optional, TypeVar

import mindspore as ms

from opensora.errors import UserError
from opensora.ops.backend import on_ascend

if TYPE_CHECKING:  # opensora.device imports the collectives
    from opensora.device import Device

Item = TypeVar("Item")


@dataclass(frozen=True)
class Group:
    """A group of the run's processes, in order of rank and evenly spaced; `index` is this process's in the group.

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
    def stride(self) -> int:
        """The distance between neighboring ranks."""
        return self.ranks[1] - self.ranks[0] if self.size > 1 else 1

    @property
    def number(self) -> int:
        """This group's index among the run's groups of consecutive ranks."""
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


class VideoGroups(NamedTuple):
    """The processes that make a video together.

    Attributes:
        video: all of them.
        sequence: those that share the tokens of this process.
        guidance: the two that exchange the rows of guidance; None: each process computes both.
    """

    video: Group
    sequence: Group
    guidance: Optional[Group]

    @property
    def lockstep(self) -> bool:
        """Whether all groups must call the same collectives: a CPU has none of single groups."""
        return self.video.size > 1 and not on_ascend()


def check_sp_size(sp_size: int, world_size: int, heads: int) -> None:
    """Raises UserError unless sp_size divides the number of processes and of attention heads."""
    if sp_size < 1 or world_size % sp_size:
        sizes = [size for size in range(1, world_size + 1) if world_size % size == 0]
        raise UserError(
            f"--sp_size {sp_size} does not divide the {world_size} processes; "
            f"choose one of {', '.join(map(str, sizes))}"
        )
    if heads % sp_size:
        sizes = [size for size in range(1, heads + 1) if heads % size == 0]
        raise UserError(
            f"--sp_size {sp_size} does not divide the model's {heads} attention heads; "
            f"choose one of {', '.join(map(str, sizes))}"
        )


def sequence_group(device: Device, sp_size: int, heads: int) -> Group:
    """The group of `sp_size` consecutive ranks that contains this process.

    Raises:
        UserError: sp_size does not divide the number of processes or of attention heads.
    """
    check_sp_size(sp_size, device.world_size, heads)
    first = device.rank // sp_size * sp_size
    return _group(device, "sequence", range(first, first + sp_size))


def video_groups(device: Device, sp_size: int, cfg_size: int, heads: int) -> VideoGroups:
    """The groups that contain this process.

    Args:
        sp_size: processes that share the tokens of a video.
        cfg_size: 2: the rows of guidance are computed by different processes; 1: by the same.

    Raises:
        UserError: sp_size cfg_size does not divide the number of processes, or sp_size that of attention heads.
    """
    sequence = sequence_group(device, sp_size, heads)
    if cfg_size == 1:
        return VideoGroups(sequence, sequence, None)
    size = sp_size * cfg_size
    if device.world_size % size:
        raise UserError(
            f"--cfg_size {cfg_size} with --sp_size {sp_size} needs a multiple of {size} processes, not "
            f"{device.world_size}: leave it out, or choose another --worker_num of msrun"
        )
    first = device.rank // size * size
    position = first + device.rank % sp_size
    return VideoGroups(
        _group(device, "video", range(first, first + size)),
        sequence,
        _group(device, "guidance", range(position, first + size, sp_size)),
    )


def _group(device: Device, kind: str, ranks: range) -> Group:
    name = f"{kind}_{ranks.start}_{len(ranks)}"
    if device.target == "Ascend" and len(ranks) > 1:  # a CPU has no group but the world; not tested on Ascend
        ms.communication.create_group(name, list(ranks))
    return Group(tuple(ranks), ranks.index(device.rank), device.world_size, name, device.all_to_all)
