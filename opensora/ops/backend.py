"""Which device the primitives of `opensora.ops` compute on, and what it offers. All are constants in graph mode."""

from __future__ import annotations

import os

import mindspore as ms
from mindspore._c_expression import ms_ctx_param

from opensora.errors import UserError

# Ascend 910A; 910B (Atlas A2); 910_93 (Atlas A3), with the names of `get_ascend_soc_version`.
FIRST_GENERATION, A2, A3 = CHIPS = ("ascend910", "ascend910b", "ascend910_93")
FUSED_OPERATORS = ("flash_attention", "layer_norm", "rms_norm", "group_norm", "rope")
COMPOSED_VARIABLE = "OPENSORA_ASCEND_COMPOSED"


def device_target() -> str:
    """Ascend, GPU or CPU."""
    return ms.context.MSContext.get_instance().get_param(ms_ctx_param.device_target)  # a tenth of get_context's time


def ascend_chip() -> str:
    """One of `CHIPS`, or the name of a chip that this project does not know. Ascend only."""
    return ms.context.MSContext.get_instance().get_ascend_soc_version()


@ms.ops.constexpr
def on_ascend() -> bool:
    """Whether operators of Ascend are available."""
    return device_target() == "Ascend"


@ms.ops.constexpr
def on_cpu() -> bool:
    """Whether tensors are computed on a CPU."""
    return device_target() == "CPU"


def convolution_dtype(dtype):
    """The dtype of an autoencoder in a run that computes in `dtype`.

    MindSpore documents convolutions on Ascend for float16 and float32 only, so that float16 replaces bfloat16 there.
    """
    return ms.float16 if dtype == ms.bfloat16 and device_target() == "Ascend" else dtype


@ms.ops.constexpr
def uses_fused(operator: str) -> bool:
    """Whether one of `FUSED_OPERATORS` is used: on Atlas A2 and A3, for which they are documented.

    `OPENSORA_ASCEND_COMPOSED` lists those to compose from elementary operators instead, separated by commas.

    Raises:
        UserError: the variable names an unknown operator.
    """
    if device_target() != "Ascend" or ascend_chip() == FIRST_GENERATION:
        return False
    composed = [name.strip() for name in os.environ.get(COMPOSED_VARIABLE, "").split(",") if name.strip()]
    unknown = [name for name in composed if name not in FUSED_OPERATORS]
    if unknown:
        raise UserError(f"{COMPOSED_VARIABLE}: {unknown[0]} is not one of {', '.join(FUSED_OPERATORS)}")
    return operator not in composed
