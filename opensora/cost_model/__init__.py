"""FLOPs, communication and memory of one step on one process, computed from the configuration without a run.

    python -m opensora.cost_model --model OpenSoraT2V_v1_3-2B/122 --height 352 --width 640 --sp_size 1 2 4 8

Nothing is measured. A step is one call of the transformer when sampling, and forward, backward and the optimizer when
training. Symbols: B batch, S tokens of a video, s tokens of one process, L tokens of the text, D width, p processes
that share a sequence (sp_size), N all processes. With `--card` the time and the memory of a run on an NPU follow from
the published figures of the card.
"""

from opensora.cost_model.command import main, parse_args
from opensora.cost_model.communication import traffic
from opensora.cost_model.compute import (
    LinearMap,
    float32_count,
    flops,
    linear_maps,
    parameter_count,
    row_counts,
    weight_bytes,
    with_sum,
)
from opensora.cost_model.footprint import activations, memory
from opensora.cost_model.report import card_table, size_table, summary, table, three_digits
from opensora.cost_model.run import BYTES, SPATIAL_STRIDE, TEMPORAL_STRIDE, ZERO_STAGES, Run, load_config

__all__ = [
    "BYTES",
    "SPATIAL_STRIDE",
    "TEMPORAL_STRIDE",
    "ZERO_STAGES",
    "LinearMap",
    "Run",
    "activations",
    "card_table",
    "float32_count",
    "flops",
    "linear_maps",
    "load_config",
    "main",
    "memory",
    "parameter_count",
    "parse_args",
    "row_counts",
    "size_table",
    "summary",
    "table",
    "three_digits",
    "traffic",
    "weight_bytes",
    "with_sum",
]
