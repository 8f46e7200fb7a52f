"""Check that all processes of a distributed run use the same kernels."""

from __future__ import annotations

from mindspore import Tensor, ops
from mindspore import dtype as mstype

from opensora.errors import UserError
from opensora.ops.cpu.build import MARCH, SWITCH, library
from opensora.ops.cpu.custom_op import has_sgemm


def check_ranks_agree() -> None:
    """Compares the kernels of all ranks. Collective: called by all ranks after `ms.communication.init`, on CPUs.

    Every process builds and loads the kernels on its own. A rank where that fails would use stock operators, whose
    results differ in the last digits, so that the replicas of the model would drift apart.

    Raises:
        UserError: On every rank, unless all have the same kernels or none has any.
    """
    found = library()
    row = [0] * 17 if found is None else [1 + has_sgemm(), *(int(digit, 16) for digit in found.key)]
    rows = ops.AllGather()(Tensor([row], mstype.float32)).asnumpy()
    differing = [rank for rank, other in enumerate(rows) if (other != rows[0]).any()]
    if not differing:
        return
    without = [rank for rank, other in enumerate(rows) if not other[0]]
    if without:
        raise UserError(
            f"rank {', '.join(map(str, without))} of {len(rows)} has no fused CPU kernels and would compute "
            f"differently; the reason is in its log, worker_{without[0]}.log; fix it, or set {SWITCH}=0 for all ranks"
        )
    raise UserError(
        f"rank {', '.join(map(str, differing))} has other CPU kernels than rank 0 (another CPU, compiler or version "
        f"of the program) and would compute differently; set {MARCH}=x86-64-v3 for all ranks if only their CPUs "
        f"differ, or {SWITCH}=0 for all ranks"
    )
