"""The command `opensora plan`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Optional

from opensora.config.command_line import parse_flags
from opensora.config.commands import CostFlags
from opensora.config.options import from_mapping
from opensora.cost_model.cards import check_card
from opensora.cost_model.report import card_table, summary, table
from opensora.cost_model.run import Run, load_config
from opensora.errors import UserError


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    return parse_flags("Computes work, traffic and memory of one step on one process.", (CostFlags, Run), argv)


def main() -> None:
    args = vars(parse_args())
    flags = from_mapping(CostFlags, args)
    from opensora.models.dit.config import OpenSoraConfig  # imports MindSpore

    config = load_config(flags.model)
    runs = [
        from_mapping(
            Run,
            args,
            config=config,
            sp_size=sp_size,
            world_size=max(1, sp_size) if flags.world_size is None else flags.world_size,
            frozen_weights=flags.held_weights()["transformer"],
        )
        for sp_size in flags.sp_size
    ]
    if flags.memory is not None:
        if not isinstance(config, OpenSoraConfig):
            raise UserError(f"--memory plans the models of v1.3, and --model {flags.model} is of v1.2; leave it out")
        from opensora.cost_model.memory_table import planned  # imports MindSpore

        plan = planned(
            runs[0],
            flags.stored,
            check_card(flags.card, runs[0]) if flags.card else None,
            flags.efficiency,
            flags.memory,
            flags.held_weights(),
        )
        print(summary(runs[0], flags.model), *plan.lines(), sep="\n")
        return
    of_card = [card_table(runs, flags.card, flags.efficiency, flags.num_sampling_steps)] if flags.card else []
    print(summary(runs[0], flags.model), table(runs), *of_card, sep="\n\n")
