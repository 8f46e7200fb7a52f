"""A process that answers questions about models for the service, which does not import MindSpore.

It reads {"task": "check" or "count", "runs": [fields of SampleOptions]} from stdin and answers each run with a line of
JSON, see `check` and `count`. Its flags are those of the device.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from opensora.config.command_line import parse_flags
from opensora.config.device import DeviceOptions
from opensora.config.families import OBJECTIVE_KEYS, SAMPLERS
from opensora.errors import UserError
from opensora.sample.child_process import answer_stdin
from opensora.sample.options import SampleOptions, check_weights


def check(options: SampleOptions) -> dict[str, Any]:
    """`options`: the objective that the weights were trained with; `samplers`: names of those that support it.

    Raises:
        UserError, FileNotFoundError: missing weights, or weights that do not go together.
    """
    from opensora.pipelines.published import make_scheduler

    checked = check_weights(options)
    samplers = []
    for name in SAMPLERS:
        # Flow matching needs weights that predict flow, and some samplers warn that they ignore the noise schedule.
        if name.startswith("FlowMatch"):
            continue
        with warnings.catch_warnings(), suppress(UserError, UserWarning):
            warnings.simplefilter("error", UserWarning)
            make_scheduler(checked.generation, name, **checked.scheduler_arguments()).set_timesteps(10)
            samplers.append(name)
    return {"options": {name: getattr(checked, name) for name in OBJECTIVE_KEYS}, "samplers": samplers}


def count(options: SampleOptions, device: Any, rate: float) -> dict[str, Any]:
    """What a run takes, without running it.

    Returns:
        tokens: patches of the video.
        flops: floating-point operations of a step; `text_flops`, those once per prompt.
        rate: floating-point operations per second of the transformer on this machine, from that of a matrix product.
        memory: bytes of the process at most, held as `--memory`, or the free memory, demands.
        needed: bytes that should be free.
        message: why it does not fit, or empty.
    """
    from opensora.checkpoint.files import read_config
    from opensora.cost_model.compute import flops
    from opensora.cost_model.memory_plan import EFFICIENCY, MARGIN
    from opensora.cost_model.run import Run
    from opensora.models.text_encoder.tokenizer import Tokenizer
    from opensora.sample.memory import plan_run

    run = Run(
        options.transformer_class.config_class.from_dict(read_config(options.model_path)),
        options.num_frames,
        options.height,
        options.width,
        precision=device.precision,
        max_sequence_length=options.max_sequence_length,
        guidance_scale=options.guidance_scale,
    )
    counted = flops(run)
    answer = {
        "tokens": run.tokens,
        "flops": counted["sum"],
        "text_flops": counted["once per prompt: linear maps of the text"],
        "rate": rate * EFFICIENCY,
        "memory": 0.0,
        "needed": 0.0,
        "message": "",
    }
    size = (options.height, options.width)
    try:
        plan = plan_run(options, device, Tokenizer(options.text_encoder_name_1), options.text_prompt, size)
    except UserError as error:
        return {**answer, "message": str(error)}
    return {**answer, "memory": plan.peak, "needed": MARGIN * plan.peak}


def answer(args: argparse.Namespace, request: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """One answer for each run of a request; `args` are the flags of the device."""
    runs = [SampleOptions(**fields) for fields in request["runs"]]
    if request["task"] == "check":
        yield from map(check, runs)
        return
    from opensora import device
    from opensora.cost_model.machine import product_rate

    place = device.setup(args)
    rate = product_rate()
    for options in runs:
        yield count(options, place, rate)


def main() -> None:
    args = parse_flags("Answers the request on stdin.", (DeviceOptions,))
    answer_stdin(lambda request: answer(args, request))


if __name__ == "__main__":
    main()
