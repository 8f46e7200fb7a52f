"""Embeds the captions of an annotation file once, so that training needs no text encoder:

python opensora/sample/sample_text_embed.py --data_file_path caption.json --output_path DIR --text_encoder_name DIR
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # runs from a fresh clone

from opensora.utils.supervision import supervise  # noqa: E402

if __name__ == "__main__":
    supervise()  # under msrun, before MindSpore is imported

from opensora import device  # noqa: E402
from opensora.models import MT5EncoderModel  # noqa: E402
from opensora.models.text_encoder.tokenizer import Tokenizer  # noqa: E402
from opensora.parallel.collectives import barrier  # noqa: E402
from opensora.sample.embedding_files import embed_captions, read_captions  # noqa: E402
from opensora.utils.cli import CommandParser, run_main  # noqa: E402
from opensora.utils.folder_lock import exclusive_folder  # noqa: E402


def parse_args() -> argparse.Namespace:
    parser = CommandParser(description="Captions -> one .npz each; captions that have one already are skipped.")
    parser.add_argument("--data_file_path", required=True, help="json list of objects with `path` and `cap`")
    parser.add_argument("--output_path", required=True, help="folder for the .npz files")
    parser.add_argument("--text_encoder_name", default="google/mt5-xxl", help="folder of mT5 or T5 v1.1")
    parser.add_argument("--model_max_length", type=int, default=512, help="longest text in tokens")
    parser.add_argument("--batch_size", type=int, default=8, help="captions that the text encoder takes at a time")
    device.add_arguments(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    MT5EncoderModel.published_config(args.text_encoder_name, "--text_encoder_name")
    tokenizer = Tokenizer(args.text_encoder_name)
    captions = read_captions(args.data_file_path, args.output_path, tokenizer.knows_chinese)
    dev = device.setup(args)
    with exclusive_folder(args.output_path, dev.is_main):
        encoder = MT5EncoderModel.from_pretrained(args.text_encoder_name, dtype=dev.dtype)
        embed_captions(captions[dev.rank :: dev.world_size], encoder, tokenizer, args.model_max_length, args.batch_size)
        barrier(dev.world_size)  # the first process holds the folder for all
    print(f"embeddings in {args.output_path}")


if __name__ == "__main__":
    run_main(main)
