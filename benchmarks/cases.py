"""The benchmark cases: configurations, inputs and weights, the same for every implementation. Needs only numpy."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import numpy as np

ROOT = Path(__file__).resolve().parents[1]

WFVAE_D8 = json.loads((ROOT / "scripts/causalvae/wfvae_8dim.json").read_text(encoding="utf-8"))
DIT_2B = {
    "num_attention_heads": 24,
    "attention_head_dim": 96,
    "num_layers": 4,
    "cross_attention_dim": 2304,
    "caption_channels": 4096,
    "sparse1d": True,
    "sparse_n": 4,
}
DIT_1152 = {**DIT_2B, "num_attention_heads": 12, "cross_attention_dim": 1152}
DIT_TINY = {
    **DIT_2B,
    "num_attention_heads": 4,
    "attention_head_dim": 24,
    "num_layers": 6,
    "cross_attention_dim": 96,
    "caption_channels": 32,
}
# The vocabulary is smaller than mT5's: the embeddings are two thirds of the memory and only looked up.
MT5 = {"vocab_size": 8192, "d_model": 1024, "d_kv": 64, "d_ff": 2816, "num_layers": 12, "num_heads": 16}

SAMPLING_STEPS = 10
GUIDANCE_SCALE = 7.5
VISIBLE_TEXT = 0.75  # fraction of the text's tokens; the others are padding


@dataclass(frozen=True)
class Case:
    """One workload in float32.

    Attributes:
        title: shown in tables.
        config: of the model.
        input: shape of the video, the latents or the token ids.
        text: number of text tokens of a transformer.
    """

    title: str
    config: Mapping[str, Any]
    input: tuple[int, ...]
    text: Optional[int] = None


CASES = {
    "vae_encode": Case("WFVAE D8, encode 9x128x128", WFVAE_D8, (1, 3, 9, 128, 128)),
    "vae_decode": Case("WFVAE D8, decode to 9x128x128", WFVAE_D8, (1, 8, 3, 16, 16)),
    "dit_step": Case("DiT, 2B width, 4 layers, batch 2, forward", DIT_2B, (2, 8, 5, 32, 32), 512),
    "mt5": Case("mT5, width 1024, 12 layers, batch 2", MT5, (2, 512)),
    "train_step": Case("DiT, width 1152, 4 layers, forward and backward", DIT_1152, (1, 8, 5, 32, 32), 512),
    "sampling": Case(f"DiT, width 96, 6 layers, {SAMPLING_STEPS} guided steps", DIT_TINY, (1, 8, 5, 8, 8), 48),
}


def normal(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def token_ids(case: Case) -> np.ndarray:
    return np.random.default_rng(0).integers(case.config["vocab_size"], size=case.input, dtype=np.int32)


def text_mask(rows: int, tokens: int) -> np.ndarray:
    """(rows, tokens), 1 = token, 0 = padding."""
    return np.tile((np.arange(tokens) < VISIBLE_TEXT * tokens).astype(np.int32), (rows, 1))


def text_states(case: Case, rows: int) -> np.ndarray:
    """(rows, tokens, caption_channels)."""
    return normal((rows, case.text, case.config["caption_channels"]), seed=1)


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The values of a parameter, derived from its published name, so that all implementations have the same weights."""
    values = np.random.default_rng(zlib.crc32(name.encode())).random(shape, np.float32) * 2 - 1
    if len(shape) > 1:
        return values / math.sqrt(math.prod(shape[1:]))
    return 0.1 * values + (1 if name.endswith(".weight") else 0)
