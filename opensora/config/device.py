"""The options of the device, the same for every command. `opensora.device` applies them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Optional

from opensora.config.options import option, seed

TARGETS = ("Ascend", "GPU", "CPU")
PRECISIONS = ("bf16", "fp16", "fp32")
ALL_TO_ALL = ("native", "gather")
MODE_HELP = "0: graph mode; 1: PyNative mode; default: PyNative mode, but a CPU compiles small transformers to sample"
DEVICE_HELP = "device to run on; default: Ascend where one is present, else CPU"


@dataclass(frozen=True)
class DeviceOptions:
    """Device, mode, precision, seed and process group of a run."""

    group: ClassVar[str] = "device"

    device: Optional[str] = option(None, DEVICE_HELP, choices=TARGETS)
    mode: Optional[int] = option(None, MODE_HELP, choices=(0, 1))
    precision: Optional[str] = option(
        None,
        "dtype of the models; default: bf16 on Ascend (fp16 on its first generation, 910A), fp32 on a CPU",
        choices=PRECISIONS,
        flags=("--mixed_precision",),
    )
    vae_precision: Optional[str] = option(
        None,
        "dtype of the autoencoder; default: that of --precision, but fp16 for bf16 on Ascend, whose convolutions are "
        "documented for fp16 and fp32",
        choices=PRECISIONS,
    )
    jit_level: Optional[str] = option(None, "compiler level of graph mode", choices=("O0", "O1", "O2"))
    max_device_memory: Optional[str] = option(None, "most device memory to use, such as 59GB")
    seed: int = option(1234, "random seed of noise, data order and initial weights", type=seed)
    all_to_all: str = option(
        "native",
        "how sequence parallelism exchanges tokens and heads: gather (an all-gather, which sends more) is for servers "
        "without AlltoAll, such as Atlas 800I A2",
        choices=ALL_TO_ALL,
    )
    use_parallel: bool = option(False, "True under msrun: join its process group", takes_value=True)
