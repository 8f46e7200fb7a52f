"""`ops.flash_attention_score` in the layout BSND with sparse_mode 0."""

from __future__ import annotations

from typing import Optional

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from standins.gradients import NumpyOperator
from standins.machine import FIRST_GENERATION, Machine
from standins.rules import SIXTEEN_BITS, is_contiguous, rule

NAME, SOURCE = "ops.flash_attention_score", "docstring of ops.flash_attention_score"
CHIP = rule(NAME, "Atlas A2 or A3", f"{SOURCE}, warning (A2; the A3 has its operators)")
DTYPE = rule(NAME, "query is float16 or bfloat16", f"{SOURCE}, query")
SAME_DTYPE = rule(NAME, "query, key and value have one dtype", f"{SOURCE}, Raises")
RANK = rule(NAME, "query, key and value have rank 4 in the layout BSND", f"{SOURCE}, query")
KEY_SHAPE = rule(NAME, "value has key's shape, which has query's B and D", f"{SOURCE}, value and Raises")
BATCH = rule(NAME, "B from 1 to 2000", f"{SOURCE}, B")
LENGTHS = rule(NAME, "S1 and S2 from 1 to 512k", f"{SOURCE}, S1 and S2")
HEADS = rule(NAME, "N1 from 1 to 256, and head_num equals it", f"{SOURCE}, N1 and head_num")
KEY_HEADS = rule(NAME, "N2 divides N1", f"{SOURCE}, N2")
WIDTH = rule(NAME, "D is a multiple of 16 and at most 512", f"{SOURCE}, D")
CONTIGUOUS = rule(NAME, "contiguous inputs", "aclnnFlashAttentionScore; views break it (vllm-ascend)")
MASK_DTYPE = rule(NAME, "attn_mask is bool or uint8", f"{SOURCE}, attn_mask")
MASK_SHAPE = rule(
    NAME, "attn_mask is (B, N1, S1, S2), (B, 1, S1, S2) or (S1, S2) in sparse_mode 0", f"{SOURCE}, attn_mask"
)
MASK_VALUES = rule(NAME, "attn_mask has 0 and 1 only", f"{SOURCE}, attn_mask")
LAYOUT = rule(NAME, "input_layout is one of the five names", f"{SOURCE}, input_layout")


def install(patch, machine: Machine) -> None:
    def flash_attention_score(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        head_num: int,
        attn_mask: Optional[Tensor] = None,
        scalar_value: float = 1.0,
        input_layout: str = "BSH",
    ) -> Tensor:
        machine.calls.add(NAME)
        CHIP.require(machine.chip != FIRST_GENERATION, machine.chip)
        LAYOUT.require(input_layout in ("BSH", "BNSD", "SBH", "BSND", "TND"), input_layout)
        assert input_layout == "BSND", "the project uses no other, and the replacement has no other"
        check_inputs(query, key, value, head_num)
        masked = None if attn_mask is None else mask_array(attn_mask, query, key)
        return attention(float(scalar_value), masked)(query, key, value)

    patch.setattr(ops, "flash_attention_score", flash_attention_score)


def check_inputs(query: Tensor, key: Tensor, value: Tensor, head_num: int) -> None:
    dtypes, shapes = [x.dtype for x in (query, key, value)], [x.shape for x in (query, key, value)]
    DTYPE.require(query.dtype in SIXTEEN_BITS, query.dtype)
    SAME_DTYPE.require(len(set(map(str, dtypes))) == 1, *dtypes)
    RANK.require(all(len(shape) == 4 for shape in shapes), *shapes)
    (b, s, n, d), (_, length, kv_heads, _) = query.shape, key.shape
    KEY_SHAPE.require(shapes[1] == shapes[2] and (b, d) == (key.shape[0], key.shape[3]), *shapes)
    BATCH.require(1 <= b <= 2000, b)
    LENGTHS.require(all(1 <= size <= 512 * 1024 for size in (s, length)), s, length)
    HEADS.require(1 <= n <= 256 and head_num == n, n, head_num)
    KEY_HEADS.require(n % kv_heads == 0, n, kv_heads)
    WIDTH.require(d % 16 == 0 and d <= 512, d)
    CONTIGUOUS.require(is_contiguous(query, key, value), "a view")


def mask_array(mask: Tensor, query: Tensor, key: Tensor) -> np.ndarray:
    """bool, broadcast to (B, N, S, L), True for masked keys."""
    (b, s, n, _), length = query.shape, key.shape[1]
    MASK_DTYPE.require(mask.dtype in (ms.bool_, ms.uint8), mask.dtype)
    MASK_SHAPE.require(mask.shape in ((b, n, s, length), (b, 1, s, length), (s, length)), mask.shape)
    CONTIGUOUS.require(is_contiguous(mask), "a view as attn_mask")
    values = mask.asnumpy()
    MASK_VALUES.require(bool((values <= 1).all()), values.max())
    return values.astype(bool)


def attention(scale: float, masked: Optional[np.ndarray]) -> NumpyOperator:
    """The output of a row whose keys are all masked is not documented. Here it is 0, while the composition of
    elementary operators gives the mean of the values: results must not depend on it.
    """

    def heads_first(x, heads):
        """(B, S, N, D) -> (B, `heads`, S, D); each head of a key serves several of the query."""
        return np.repeat(x.swapaxes(1, 2), heads // x.shape[2], 1)

    def weights(q, k):
        scores = scale * (q @ k.swapaxes(2, 3))
        if masked is not None:
            scores = np.where(masked, -np.inf, scores)
        largest = scores.max(-1, keepdims=True)
        exponentials = np.exp(scores - np.where(np.isfinite(largest), largest, 0))
        return exponentials / np.maximum(exponentials.sum(-1, keepdims=True), np.finfo(float).tiny)

    def forward(q, k, v):
        q, k, v = (heads_first(x, q.shape[2]) for x in (q, k, v))
        return (weights(q, k) @ v).swapaxes(1, 2)

    def backward(q, k, v, dy):
        b, length, key_heads, d = k.shape
        q, k, v, dy = (heads_first(x, q.shape[2]) for x in (q, k, v, dy))
        p = weights(q, k)
        d_p = dy @ v.swapaxes(2, 3)
        d_scores = scale * p * (d_p - (p * d_p).sum(-1, keepdims=True))
        d_k, d_v = d_scores.swapaxes(2, 3) @ q, p.swapaxes(2, 3) @ dy
        d_k, d_v = (x.reshape(b, key_heads, -1, length, d).sum(2).swapaxes(1, 2) for x in (d_k, d_v))
        return (d_scores @ k).swapaxes(1, 2), d_k, d_v

    return NumpyOperator(forward, backward)
