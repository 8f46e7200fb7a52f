"""A text encoder that runs on the CPU while the other models run on Ascend, whose memory it leaves to them."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Optional, Union

import numpy as np
from mindspore import Tensor, nn
from tqdm import tqdm

from opensora.checkpoint.files import resolve_path
from opensora.device import Device
from opensora.sample import text_encoder_process
from opensora.sample.child_process import converse


class HostTextEncoder(nn.Cell):
    """Encodes like `MT5EncoderModel`, in a process on the CPU that ends after each call and thus frees its memory.

    It is a separate process because MindSpore computes on one kind of device per process.

    Args:
        path: folder of the text encoder.
        weights: one of `opensora.config.memory.WEIGHTS`; None: as stored.
        device: of this process; its number of processes share the machine's memory.
    """

    is_streamed = True  # as for one, texts are encoded many at a time

    def __init__(self, path: Union[str, Path], weights: Optional[str], device: Device):
        super().__init__()
        self.path, self.weights, self.device = path, weights, device

    def encode(self, batches: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
        """The states, float32, of batches of ids and masks.

        Raises:
            UserError, OSError: unusable weights, or the process failed.
        """
        request = [[ids.asnumpy().tolist(), mask.asnumpy().tolist()] for ids, mask in batches]
        with tempfile.TemporaryDirectory() as folder:
            flags = {
                "text_encoder_name": resolve_path(self.path).resolve(),
                "output_folder": folder,
                "processes": self.device.world_size,
                "device": "CPU",
                "precision": "fp32",
            }
            if self.weights is not None:
                flags["weights"] = self.weights
            arguments = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
            answers = converse(text_encoder_process.__name__, arguments, request, len(request), "text encoder")
            progress = tqdm(
                answers, "embedding texts on the CPU", len(request), unit="text", disable=not self.device.is_main
            )
            return [Tensor(np.load(path)) for path in progress]
