"""The collectives of `opensora.parallel` under msrun: values, gradients and bandwidth.

Rank r contributes whole numbers that follow from r, so that every rank knows the exact result.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from functools import partial
from statistics import median
from typing import Callable, NamedTuple, Optional

import numpy as np

from opensora.doctor.checks import FAILED, LAST_ROW, OK, SKIPPED, Result, Rows, Settings

SIZES = {"CPU": (1 << 20, 1 << 22), "Ascend": (1 << 20, 1 << 26)}  # bytes of a rank's input
CALLS = 3  # that are timed, after the first
LARGEST = 251  # of the numbers; sums of them are exact in float32
EXAMPLE = "msrun --worker_num=8 --local_worker_num=8 --join=True python -m opensora.cli doctor"


class Collective(NamedTuple):
    """A collective of all ranks, and its exact result on rank `rank` from the inputs (ranks, n) of all.

    Attributes:
        gradient: the gradient of the sum of weights times output, from the weights of all ranks; None: it has none.
    """

    run: Callable
    output: Callable[[Sequence[np.ndarray], int], np.ndarray]
    gradient: Optional[Callable[[Sequence[np.ndarray], int], np.ndarray]] = None


def rows(settings: Settings) -> Rows:
    if "MS_WORKER_NUM" not in os.environ:
        return {"all": lambda: Result(SKIPPED, f"needs several processes: {EXAMPLE}")}
    from opensora.doctor.place import set_up

    device = set_up(settings.device, use_parallel=True)
    rank, size = device.rank, device.world_size
    failed = [settings.failed]

    def recorded(collective: Collective) -> Result:
        failed.append(True)  # unless the check comes to an end
        result = check(collective, rank, size, SIZES[device.target])
        failed[-1] = result.status == FAILED
        return result

    checks = {name: partial(recorded, found) for name, found in collectives(device).items()}
    return {**checks, LAST_ROW: lambda: agreement(any(failed), rank, size)}


def collectives(device) -> dict[str, Collective]:
    """By name: those of flat buffers, and the differentiable ones. `device`: of `opensora.device`."""
    from opensora.parallel import collectives as differentiable
    from opensora.parallel.groups import sequence_group
    from opensora.parallel.process_group import World

    rank, size = device.rank, device.world_size
    world, group = World(rank, size), sequence_group(device, size, heads=size)

    def flat(method: Callable) -> Callable:
        return lambda x: method(x.reshape(-1))

    def total(values: Sequence[np.ndarray], rank: int) -> np.ndarray:
        return np.sum(values, 0)

    def own_row(values: Sequence[np.ndarray], rank: int) -> np.ndarray:
        return np.sum(values, 0)[rank : rank + 1]

    def gathered(values: Sequence[np.ndarray], rank: int) -> np.ndarray:
        return np.concatenate(values)

    def first(values: Sequence[np.ndarray], rank: int) -> np.ndarray:
        return values[0]

    def exchanged(values: Sequence[np.ndarray], rank: int) -> np.ndarray:
        return np.concatenate([value[rank : rank + 1] for value in values], 1)

    return {
        "world all_reduce": Collective(flat(world.all_reduce), total),
        "world all_gather": Collective(flat(world.all_gather), gathered),
        "world reduce_scatter": Collective(flat(world.reduce_scatter), own_row),
        "AllReduce": Collective(differentiable.AllReduce(group), total, total),
        "AllGather": Collective(
            differentiable.AllGather(group, 0), gathered, lambda w, rank: np.sum(w, 0)[rank * size : (rank + 1) * size]
        ),
        "ReduceScatter": Collective(differentiable.ReduceScatter(group, 0), own_row, gathered),
        "Broadcast": Collective(
            differentiable.Broadcast(group), first, lambda w, rank: np.sum(w, 0) if rank == 0 else np.zeros_like(w[0])
        ),
        "AllToAll": Collective(
            differentiable.AllToAll(group, 0, 1),
            exchanged,
            lambda w, rank: np.concatenate([v[:, n * rank : n * (rank + 1)] for v in w for n in [v.shape[1] // size]]),
        ),
    }


def numbers(shape: Sequence[int], rank: int) -> np.ndarray:
    """The whole numbers of a rank, float32."""
    return (np.arange(np.prod(shape)) * (rank + 3) % LARGEST).reshape(shape).astype(np.float32)


def check(collective: Collective, rank: int, size: int, sizes: Sequence[int]) -> Result:
    """Values at both sizes, the gradient at the smaller one, and the bandwidth.

    Bandwidth is the input or the output of a rank, whichever is larger, over the time.
    """
    import mindspore as ms

    values = {}
    for bytes_of_input in sizes:
        shape = (size, bytes_of_input // 4 // size)
        inputs = [numbers(shape, other) for other in range(size)]
        x = ms.Tensor(inputs[rank])
        output, seconds = _timed(lambda: collective.run(x).asnumpy())  # noqa: B023
        expected = collective.output(inputs, rank)
        if not np.array_equal(output.reshape(expected.shape), expected):
            return Result(FAILED, f"rank {rank}: wrong values at {bytes_of_input >> 20} MB", _REMEDY)
        values[f"{bytes_of_input >> 20} MB"] = max(output.nbytes, x.nbytes) / seconds / 1e9
    if collective.gradient is not None:
        shape = (size, sizes[0] // 4 // size)
        x = ms.Tensor(numbers(shape, rank))
        weights = [numbers(collective.output([x.asnumpy()] * size, other).shape, other) for other in range(size)]
        weight = ms.Tensor(weights[rank])
        gradient = ms.grad(lambda x: (collective.run(x) * weight).sum())(x).asnumpy()
        if not np.array_equal(gradient, collective.gradient(weights, rank)):
            return Result(FAILED, f"rank {rank}: wrong gradient", _REMEDY)
    shown = ", ".join(f"{label} {value:.2f} GB/s" for label, value in values.items())
    return Result(OK, shown, numbers={"GB/s": values, "ranks": size})


_REMEDY = "check the network (hccn_tool, HCCL_* variables), then report it with the JSON of this command"


def agreement(failed: bool, rank: int, size: int) -> Result:
    """Whether a check has failed on any rank, the same answer on all."""
    import mindspore as ms

    from opensora.parallel.process_group import World

    flags = World(rank, size).all_gather(ms.Tensor([float(failed)])).asnumpy()
    ranks = [str(number) for number, flag in enumerate(flags) if flag]
    if ranks:
        return Result(FAILED, f"a check has failed on rank {', '.join(ranks)}", "see its rows, or its log")
    return Result(OK, f"no check has failed on {size} ranks")


def _timed(run: Callable[[], np.ndarray]) -> tuple[np.ndarray, float]:
    """The result, and the median of the seconds of the calls after the first."""
    result, seconds = run(), []
    for _ in range(CALLS):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return result, median(seconds)
