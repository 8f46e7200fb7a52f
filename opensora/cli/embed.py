"""opensora embed: embeds the captions of an annotation file once, so that training needs no text encoder."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Optional

from opensora.config.command_line import parse_flags
from opensora.config.commands import EmbedOptions
from opensora.config.device import DeviceOptions
from opensora.utils.folder_lock import exclusive_folder


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    return parse_flags(
        "Embeds captions, one .npz file each; captions that have one already are skipped.",
        (EmbedOptions, DeviceOptions),
        argv,
    )


def main(argv: Optional[Sequence[str]] = None) -> None:
    args = parse_args(argv)
    from opensora import device  # MindSpore is imported after the flags are checked
    from opensora.models import MT5EncoderModel
    from opensora.models.text_encoder.tokenizer import Tokenizer
    from opensora.parallel.collectives import barrier
    from opensora.sample.embedding_files import embed_captions, read_captions

    MT5EncoderModel.published_config(args.text_encoder_name, "--text_encoder_name")
    tokenizer = Tokenizer(args.text_encoder_name)
    captions = read_captions(args.data_file_path, args.output_path, tokenizer.knows_chinese)
    dev = device.setup(args)
    with exclusive_folder(args.output_path, dev.is_main):
        encoder = MT5EncoderModel.from_pretrained(args.text_encoder_name, dtype=dev.dtype)
        embed_captions(captions[dev.rank :: dev.world_size], encoder, tokenizer, args.model_max_length, args.batch_size)
        barrier(dev.world_size)  # the first process holds the folder for all
    print(f"embeddings in {args.output_path}")
