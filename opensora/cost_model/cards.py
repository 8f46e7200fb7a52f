"""Published figures of Ascend cards, and the time that follows from them.

The time of a step is its FLOPs divided by a share of the peak (`--efficiency`), plus its communication divided by
`LINK_SHARE` of the rate of the links. The figures are Huawei's, as third parties quote them: its data sheets were not
available.

- 910A: 256 TFLOP/s (Hot Chips 2019), 32 GB. Links between the two halves of a server are slower than within them.
- 910B: the white paper of Atlas 800T A2 names variants of 313 and 376 TFLOP/s with 64 GB; this is the slower one. Each
  of eight NPUs has a link to every other one, 392 GB/s together in both directions. The 910B4 has 280 TFLOP/s, 32 GB.
- 910_93: 752 TFLOP/s, 128 GB and 784 GB/s for a chip of two dies. A process runs on one die. A switch connects all.

The default efficiency of 20% is what the training times in mindone's READMEs imply, with the FLOPs of this package
(recomputation included) and 313 TFLOP/s: 19% for this model at 93x352x640 (10.3 s a step, eight Ascend 910*, MindSpore
2.3.1), 10% to 29% for four stages of the similar model of Open-Sora-Plan v1.2. These steps may include the autoencoder.
Large language models reach more: Pangu Ultra MoE reports 30% in training (arXiv:2505.04519).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from opensora.cost_model.communication import traffic
from opensora.cost_model.compute import flops
from opensora.cost_model.run import Run
from opensora.errors import UserError

# A benchmark on a 910B (limulidae) reports all-gathers of 38 GB/s on two devices and 64 GB/s on four, in bytes of the
# result: 68% and 57% of one and of three links.
LINK_SHARE = 0.6


@dataclass(frozen=True)
class Card:
    """What one process has: of a 910_93 that is one die.

    Attributes:
        flops: peak of dense 16-bit products per second.
        memory: bytes.
        links: bytes per second that it sends to all other processes of a server together; None: unknown.
        peers: number of processes that `links` is divided over; 1: every process has the whole rate to any other.
        server: processes of a server; communication between servers is not counted.
    """

    flops: float
    memory: float
    precisions: tuple[str, ...] = ("bf16", "fp16")
    has_flash_attention: bool = True
    links: Optional[float] = None
    peers: int = 1
    server: int = 8

    def link_rate(self, processes: int) -> Optional[float]:
        """Bytes per second that a process sends to `processes` - 1 others; None: unknown."""
        if self.links is None or processes > self.server:
            return None
        return self.links * min(1.0, (processes - 1) / self.peers)


CARDS = {
    "910a": Card(256e12, 32e9, precisions=("fp16",), has_flash_attention=False),
    "910b": Card(313e12, 64e9, links=196e9, peers=7),
    "910_93": Card(376e12, 64e9, links=196e9, server=16),
}


def check_card(name: str, run: Run) -> Card:
    """The card of that name. Raises UserError if it has no figures for the precision of the run."""
    card = CARDS[name]
    if run.precision not in card.precisions:
        raise UserError(
            f"--card {name} has figures for --precision {' or '.join(card.precisions)}, not {run.precision}"
        )
    return card


def step_seconds(run: Run, card: Card, efficiency: float) -> dict[str, Optional[float]]:
    """Seconds of computation and of communication in a step, without overlap; None: unknown."""
    communication: Optional[float] = 0.0
    for name, sent in traffic(run).items():
        processes = run.world_size if name.endswith(("of gradients", "of weights")) else run.sp_size
        if name != "sum" and processes > 1 and communication is not None:
            rate = card.link_rate(processes)
            communication = None if rate is None else communication + sent / rate / LINK_SHARE
    return {"computation": flops(run)["sum"] / card.flops / efficiency, "communication": communication}
