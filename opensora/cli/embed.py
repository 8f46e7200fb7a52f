"""opensora embed: embeds the captions of an annotation file once, so that training needs no text encoder."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Optional

from opensora.config.command_line import parse_flags
from opensora.config.commands import EmbedOptions
from opensora.config.device import DeviceOptions
from opensora.config.options import from_mapping
from opensora.utils.folder_lock import exclusive_folder


def parse_args(argv: Optional[Sequence[str]] = None) -> tuple[EmbedOptions, argparse.Namespace]:
    args = parse_flags(
        "Embeds captions, one .npz file each; captions that have one already are skipped.",
        (EmbedOptions, DeviceOptions),
        argv,
    )
    return from_mapping(EmbedOptions, vars(args)), args


def main(argv: Optional[Sequence[str]] = None) -> None:
    options, args = parse_args(argv)
    from opensora import device  # MindSpore is imported after the flags are checked
    from opensora.models import MT5EncoderModel
    from opensora.models.text_encoder.tokenizer import Tokenizer
    from opensora.parallel.collectives import barrier
    from opensora.sample.embedding_files import embed_captions, read_captions
    from opensora.sample.memory import count_texts, plan_text_encoder

    path, length = options.text_encoder_name, options.model_max_length
    MT5EncoderModel.published_config(path, "--text_encoder_name")
    tokenizer = Tokenizer(path)
    captions = read_captions(options.data_file_path, options.output_path, tokenizer.knows_chinese)
    dev = device.setup(args)
    texts = count_texts(tokenizer, {caption.text for caption in captions}, length, options.batch_size)
    plan = plan_text_encoder(path, options.held_weights, texts, options.memory, dev)
    with exclusive_folder(options.output_path, dev.is_main):
        encoder = MT5EncoderModel.from_pretrained(
            path, dtype=dev.dtype, weights=plan.weights, streamed=plan.streamed
        ).set_train(False)
        embed_captions(captions[dev.rank :: dev.world_size], encoder, tokenizer, length, options.batch_size)
        barrier(dev.world_size)  # the first process holds the folder for all
    print(f"embeddings in {options.output_path}")
