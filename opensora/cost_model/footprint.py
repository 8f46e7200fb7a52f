"""Device memory of the transformer."""

from __future__ import annotations

from opensora.cost_model.compute import gradient_bytes, matrix_counts, trained_counts, weight_bytes, with_sum
from opensora.cost_model.run import BYTES, ZERO_STAGES, Run
from opensora.models.dit.config import OpenSoraInpaintConfig

Q8_BYTES = 34 / 32  # of a weight in 8 bits, with its share of the scale
FIRST_BLOCK_TENSORS = 4  # of `FirstBlockCache`: what block 0 and the others added in the last call, and now


def memory(run: Run) -> dict[str, float]:
    """Bytes of the transformer on one process.

    Weights, gradients and optimizer states: Rajbhandari et al. 2020 (ZeRO), section 5 and figure 1. With 16-bit weights
    Adam has 12 bytes per parameter, 4 of them float32 master weights; float32 weights need no master weights. A 16-bit
    model has both kinds (`float32_count`). With stage 3 the 16-bit weights exist for one block at a time, which gathers
    them from the master weights; that block is not counted. LoRA trains its adapters alone, in the precision of the
    run; the frozen weights are on every process.
    """
    config, (half, single) = run.config, trained_counts(run)
    shards = [run.world_size if run.zero_stage >= stage else 1 for stage in ZERO_STAGES]
    result: dict[str, float] = {"weights": weight_bytes(run)}
    if run.lora_rank is not None:
        result = {"weights": frozen_bytes(run), "adapters": gradient_bytes(run)}
    if run.zero_stage == 3:
        result["weights" if run.lora_rank is None else "adapters"] = BYTES["fp32"] * single / shards[3]
    if run.training:
        result["gradients"] = gradient_bytes(run) / shards[2]
        result["float32 master weights"] = 4 * half / shards[1]
        result["optimizer states"] = 8 * (half + single) / shards[1]
    guided = run.batch > run.batch_size  # the negative prompt's are also kept for the next video
    text_rows = run.batch + (run.batch_size if guided else 0)
    text = text_rows * run.max_sequence_length * config.hidden_size * run.bytes
    result["text keys and values"] = 2 * config.num_layers * text
    if not run.training and isinstance(config, OpenSoraInpaintConfig):
        result["tokens of the condition"] = run.batch_size * run.tokens * config.hidden_size * run.bytes
    if run.caches_blocks:
        elements = run.batch * run.own_tokens * config.hidden_size
        result["tokens of step caching"] = FIRST_BLOCK_TENSORS * elements * BYTES["fp32"]
    result["activations (estimate)"] = activations(run)
    return with_sum(result)


def frozen_bytes(run: Run) -> float:
    """Bytes of the frozen weights of LoRA training, in the format that they are held in; see `WeightLoader.kind`."""
    matrices, quantizable = matrix_counts(run.config)
    element = min(run.bytes, BYTES.get(run.frozen_weights or run.precision, run.bytes))
    saved: float = matrices * (run.bytes - element)
    if run.frozen_weights == "q8_0":
        saved = quantizable * (run.bytes - Q8_BYTES)
    return weight_bytes(run) - saved


def activations(run: Run) -> float:
    """An estimate of the bytes of activations, as a number of tensors (B, s, D) that exist at the same time.

    Sampling: the maximum is in the feed-forward, with the block's input (float32), the normalized input, and the hidden
    layer (4 D) before and after GELU; or the embedding of the whole sequence in two layouts, if that is larger.
    Training: the tensors that a block keeps for its gradient (counted as in Korthikanti et al. 2022, section 4.1). In
    the run's precision there are 17: the inputs of both attentions, of their output maps and of the feed-forward (5),
    self-attention's q, k, v and cross-attention's q (4), the hidden layer before and after GELU (8). In float32 there
    are 6: the centered and the normalized input of both norms, both gated results. With gradient checkpointing every
    block keeps its input, and one block at a time the rest. Attention scores, which a fused kernel does not store, and
    elementwise temporaries are not counted.
    """
    single = BYTES["fp32"]
    elements = run.batch * run.own_tokens * run.config.hidden_size
    embedding = 2 * run.batch * run.tokens * run.config.hidden_size * run.bytes
    if not run.training:
        return max(elements * (single + 9 * run.bytes), embedding)
    block = elements * (17 * run.bytes + 6 * single)
    if run.gradient_checkpointing:
        return run.config.num_layers * elements * single + block
    return run.config.num_layers * block
