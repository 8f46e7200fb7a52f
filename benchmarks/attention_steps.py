"""One self-attention layer of the 2B width: the worker `python -m benchmarks.attention_steps BLOCK TOKENS`.

BLOCK is the index of the layer's block, which determines whether it is dense or skiparse. Float32, batch 1.
"""

from __future__ import annotations

import sys
from typing import Any

from mindspore import Tensor

import opensora  # noqa: F401, before MindSpore, whose threads read the settings
from benchmarks.cases import DIT_2B, normal
from benchmarks.worker import Step, serve
from opensora.models.dit.blocks import SelfAttention
from opensora.models.dit.config import OpenSoraConfig
from opensora.ops.rope import rope_cos, rope_sin


def build(block: int, tokens: int) -> tuple[Step, dict[str, Any]]:
    """Positions vary along one axis, which costs the same as three."""
    config = OpenSoraConfig.from_dict(DIT_2B)
    layer = SelfAttention(config, block).set_train(False)
    x = Tensor(normal((1, tokens, config.hidden_size)))
    cos, sin = (table(tokens, 1, 1, config.attention_head_dim, (1.0, 1.0, 1.0)) for table in (rope_cos, rope_sin))
    return lambda: layer(x, None, cos, sin).asnumpy(), {}


if __name__ == "__main__":
    serve(lambda: build(int(sys.argv[1]), int(sys.argv[2])))
