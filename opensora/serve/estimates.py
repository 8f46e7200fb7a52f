"""Memory and time of a video before it is made.

Another process counts memory and work, once for each size, because that imports MindSpore. Time follows from finished
jobs of the same model: of the same shape if there are some, else of the nearest shape, by their work. Without finished
jobs it is counted from the rate of a matrix product.
"""

from __future__ import annotations

import asyncio
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from opensora.errors import UserError
from opensora.sample.child_process import converse
from opensora.sample.options import INPAINT_TYPES
from opensora.serve.errors import invalid
from opensora.serve.requests import sample_fields
from opensora.serve.store import Speed, Store
from opensora.utils.memory import available_memory

RECENT = 5  # measurements of a shape that count
MOST_SHAPES = 8  # measured shapes that are compared
EXAMPLE_PROMPT = "a prompt of a few words"


def shape_of(spec: Mapping[str, Any]) -> str:
    """What the work of a step depends on, as in 64x64x17 or 64x64x17+guidance."""
    guidance = "+guidance" if spec["guidance_scale"] > 1 else ""
    return f"{spec['size']}x{spec['num_frames']}{guidance}"


class Estimates:
    """Estimates for the models of a service.

    Args:
        device: flags of the workers' device.
    """

    def __init__(self, store: Store, device: Sequence[str]):
        self._store, self._device = store, list(device)
        self._counting = asyncio.Lock()

    def record(self, spec: Mapping[str, Any], stages: Mapping[str, float], calls: int) -> None:
        """Remembers the seconds of a finished job by stage."""
        self._store.add_speed(Speed(spec["model"], shape_of(spec), max(calls, 1), stages))

    async def estimate(self, spec: Mapping[str, Any], workers: Sequence[int]) -> dict[str, Any]:
        """The answer of POST /v1/estimate.

        Args:
            spec: a resolved request.
            workers: process ids of the workers, whose memory the video may use.

        Raises:
            ApiError: the size cannot be counted.
        """
        speeds = self._store.speeds(spec["model"])
        shape = shape_of(spec)
        counts = await self._counts(spec, [shape, *_different_shapes(speeds, shape)])
        seconds, basis = _seconds(spec, shape, speeds, counts)
        free = available_memory()
        budget = math.inf if free is None else free + sum(map(_resident, workers))
        count = counts[shape]
        message, fits = count["message"], not count["message"]
        if fits and count["needed"] > budget:
            message, fits = f"{count['needed'] / 1e9:.2f} GB are needed, {budget / 1e9:.2f} GB are free", False
        return {
            "memory_bytes": int(count["memory"]),
            "seconds": round(seconds, 1),
            "tokens": count["tokens"],
            "basis": basis,
            "fits": fits,
            "message": message,
        }

    async def _counts(self, spec: Mapping[str, Any], shapes: Sequence[str]) -> dict[str, Mapping[str, Any]]:
        """The counts of shapes of a request's model: those that are stored, and those of the process."""
        async with self._counting:  # one process at a time
            keys = {shape: f"{spec['options']}{self._device} {shape}" for shape in shapes}
            counts = {shape: count for shape, key in keys.items() if (count := self._store.count(key)) is not None}
            missing = [shape for shape in shapes if shape not in counts]
            if missing:
                request = {"task": "count", "runs": [self._fields(spec, shape) for shape in missing]}
                arguments = ("opensora.serve.model_process", self._device, request, len(missing), "estimate")
                try:
                    answers = await asyncio.to_thread(lambda: list(converse(*arguments)))
                except (UserError, OSError) as error:
                    raise invalid("size", str(error)) from error
                for shape, answer in zip(missing, answers):
                    counts[shape] = answer
                    self._store.set_count(keys[shape], answer)
        return counts

    def _fields(self, spec: Mapping[str, Any], shape: str) -> dict[str, Any]:
        size, _, frames = shape.partition("+")[0].rpartition("x")
        changes = {"size": size, "num_frames": int(frames), "prompt": EXAMPLE_PROMPT, "lora_files": [], "cache": None}
        guidance = max(spec["guidance_scale"], 1.5) if shape.endswith("+guidance") else 1.0
        fields = sample_fields({**spec, **changes, "guidance_scale": guidance}, Path("job"))
        if fields["model_type"] in INPAINT_TYPES:
            fields["conditional_pixel_values_path"] = "image.png"
        for name in ("mask_type", "condition_frames"):
            fields.pop(name, None)
        return fields


def _different_shapes(speeds: Sequence[Speed], shape: str) -> list[str]:
    """The shapes that a time can be derived from; none are needed where this one was measured."""
    measured = list(dict.fromkeys(speed.shape for speed in speeds))
    return [] if shape in measured else measured[:MOST_SHAPES]


def _seconds(
    spec: Mapping[str, Any], shape: str, speeds: Sequence[Speed], counts: Mapping[str, Mapping[str, Any]]
) -> tuple[float, str]:
    count = counts[shape]
    comparable = [speed for speed in speeds if speed.shape in counts]
    if not comparable:
        return (spec["steps"] * count["flops"] + count["text_flops"]) / count["rate"], "counted"
    nearest = min(comparable, key=lambda speed: abs(math.log(counts[speed.shape]["flops"] / count["flops"]))).shape
    recent = [speed for speed in comparable if speed.shape == nearest][:RECENT]
    work = count["flops"] / counts[nearest]["flops"]
    # The lower median: the first video of a shape in a worker's life includes compilation.
    step = statistics.median_low(speed.stages.get("denoise", 0.0) / speed.calls for speed in recent)
    rest = statistics.median_low(speed.stages.get("encode", 0.0) for speed in recent)
    decode = statistics.median_low(speed.stages.get("decode", 0.0) for speed in recent)
    pixels = count["tokens"] / counts[nearest]["tokens"]
    return spec["steps"] * step * work + rest + decode * pixels, "measured"


def _resident(pid: int) -> int:
    """Bytes of memory that a process occupies; 0 if it has ended."""
    with suppress(OSError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0
