"""The process of a text encoder on the CPU; `host_text_encoder.HostTextEncoder` starts it and communicates with it.

It reads a JSON list of batches, each with ids and mask of equal shapes (B, L), and answers each with a .npy file of the
states (B, L, D), float32. It computes in float32, whatever the run's --precision is.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Optional

import numpy as np

from opensora.config.command_line import parse_flags
from opensora.config.commands import TextEncoderProcessOptions
from opensora.config.device import DeviceOptions
from opensora.config.options import from_mapping
from opensora.sample.child_process import answer_stdin


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    return parse_flags("Embeds the tokens on stdin.", (TextEncoderProcessOptions, DeviceOptions), argv)


def embed_batches(args: argparse.Namespace, batches: Sequence[Sequence]) -> Iterator[str]:
    """Yields the path of the file with each batch's states.

    Raises:
        UserError, OSError: the weights are unusable.
    """
    from mindspore import Tensor

    from opensora import device
    from opensora.cost_model.stages import Texts
    from opensora.models import MT5EncoderModel
    from opensora.sample.memory import plan_text_encoder

    options = from_mapping(TextEncoderProcessOptions, vars(args))
    place = replace(device.setup(args), world_size=options.processes)  # which share the memory of this machine
    tensors = [tuple(Tensor(np.array(rows, np.int32)) for rows in batch) for batch in batches]
    texts = Texts(
        max(ids.shape[1] for ids, _ in tensors),
        max(ids.shape[0] for ids, _ in tensors),
        sum(ids.shape[0] for ids, _ in tensors),
    )
    held = plan_text_encoder(options.text_encoder_name, options.weights, texts, None, place)
    encoder = MT5EncoderModel.from_pretrained(
        options.text_encoder_name, dtype=place.dtype, weights=held.weights, streamed=held.streamed
    ).set_train(False)
    passes = [tensors] if encoder.is_streamed else [[batch] for batch in tensors]
    for number, states in enumerate(states for some in passes for states in encoder.encode(some)):
        path = Path(options.output_folder) / f"{number}.npy"
        np.save(path, states.float().asnumpy())
        yield str(path)


def main() -> None:
    args = parse_args()
    answer_stdin(lambda batches: embed_batches(args, batches))


if __name__ == "__main__":
    main()
