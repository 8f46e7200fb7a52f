"""Creates the demo's text encoder: a vocabulary of the captions' words, and an untrained mT5 encoder.

    python tools/demo/make_text_encoder.py --output_dir DIR

A frozen encoder only has to distinguish captions. Random weights suffice if attention depends on relative positions:
the relative position biases have a large variance here, so that each head attends to few positions, and `red` before
`circle` gets another state than `red` before `background`. The transformer learns to interpret the states.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import sentencepiece

try:
    from opensora.config.command_line import parse_flags, run_main
    from opensora.config.commands import DemoTextEncoderOptions
    from opensora.demo.scenes import WORLDS, mixed_scenes
except ModuleNotFoundError as error:
    sys.exit(f"error: {error}; in the folder of the clone, run: pip install -e . (or: bash scripts/setup.sh)")

SIZES = dict(
    d_model=192,
    d_kv=32,
    d_ff=384,
    num_layers=2,
    num_heads=12,
    relative_attention_num_buckets=32,
    relative_attention_max_distance=64,
)
VOCABULARY = 140  # pieces: enough for one per word
BIAS_SPREAD = 3.0  # standard deviation: one distance gets most of a head's attention
# Factor of attention's results. A linear probe of a shape's state reads its own color with an accuracy of 1.00 and the
# background's with 0.89 from captions of two objects; with a factor of 1, 8 heads and 128 channels 0.6 and 0.4.
ATTENTION_SPREAD = 4.0

if TYPE_CHECKING:
    from opensora.models import MT5EncoderModel


def make_vocabulary(folder: Path) -> int:
    """Writes spiece.model with mT5's special pieces; returns the vocabulary size."""
    rng = np.random.default_rng(0)
    words = sorted(
        {word for scene in mixed_scenes(2000, False, rng, WORLDS["large"]) for word in scene.caption().split()}
    )
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words),
        model_prefix=str(folder / "spiece"),
        model_type="bpe",
        vocab_size=VOCABULARY,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    (folder / "spiece.vocab").unlink()
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model")).vocab_size()


def make_encoder(vocabulary: int) -> MT5EncoderModel:
    from opensora.models import MT5EncoderModel

    encoder = MT5EncoderModel(vocab_size=vocabulary, model_type="mt5", **SIZES)
    rng, state = np.random.default_rng(0), {}
    for name, value in encoder.torch_state().items():
        if "relative_attention_bias" in name:
            spread = BIAS_SPREAD
        elif "shared" in name or "embed_tokens" in name:
            spread = 1.0
        elif "layer_norm" in name:
            continue
        else:
            spread = value.shape[1] ** -0.5
            if name.endswith(".q.weight"):
                spread *= SIZES["d_kv"] ** -0.5
            elif name.endswith(".o.weight"):
                spread *= ATTENTION_SPREAD
        state[name] = rng.normal(0, spread, value.shape).astype(np.float32)
    for alias in encoder.aliases:
        state.pop(alias, None)
    encoder.load_torch_state(state, strict=False)
    return encoder


def main() -> None:
    folder = Path(
        parse_flags("Creates the vocabulary and text encoder of the demo.", (DemoTextEncoderOptions,)).output_dir
    )
    folder.mkdir(parents=True, exist_ok=True)
    make_encoder(make_vocabulary(folder)).save_pretrained(folder)


if __name__ == "__main__":
    run_main(main)
