"""Bytes that a process sends."""

from __future__ import annotations

from opensora.cost_model.compute import gradient_bytes, with_sum
from opensora.cost_model.run import Run


def traffic(run: Run) -> dict[str, float]:
    """Bytes that one process sends in a step, by collective.

    Sequence parallelism: every block exchanges q, k, v before attention and its output after it (Jacobs et al. 2023,
    DeepSpeed-Ulysses, section 3.2); each time a process sends all but the 1 / p that it keeps. Gradients: Rajbhandari
    et al. 2020 (ZeRO), section 7; stages 1 and 2 send as much as a ring all-reduce, stage 3 half as much again.
    Weights are the same on all N processes, also on those of one sequence, so gradients are reduced over all N. These
    are Ascend's collectives; on a CPU all of them are all-gathers, which send more.
    """
    config, p = run.config, run.sp_size
    shared = (run.batch - run.batch_size) / run.batch  # block 0's self-attention leaves out rows, see `flops`
    exchanges = (config.num_layers - shared) * (run.forwards + run.training)  # the backward pass exchanges gradients
    tokens = run.batch * run.own_tokens * config.hidden_size * run.bytes
    exchanged = exchanges * tokens * (p - 1) / p
    out_channels = config.out_channels or config.in_channels
    prediction = run.batch * run.own_tokens * config.patch_size**2 * out_channels * run.bytes
    result = {
        "all-to-all of q, k, v": 3 * exchanged,
        "all-to-all of attention's output": exchanged,
        # In the backward pass each member gathers all members' gradients of the whole prediction.
        "all-gather of the prediction": (p - 1) * prediction * (1 + p if run.training else 1),
    }
    if run.training:
        gradients = gradient_bytes(run) * (run.world_size - 1) / run.world_size
        if run.zero_stage == 0:
            result["all-reduce of gradients"] = 2 * gradients
        else:
            result["reduce-scatter of gradients"] = gradients
            result["all-gather of weights"] = gradients * (2 if run.zero_stage == 3 else 1)
    return with_sum(result)
