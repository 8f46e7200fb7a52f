"""Configuration of the T5 encoders, with the keys of the published config.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from opensora.errors import UserError
from opensora.models.model_config import ModelConfig


@dataclass(frozen=True)
class MT5Config(ModelConfig):
    """The keys that the encoder needs; the ignored ones concern the decoder, training or generation."""

    vocab_size: int = 250112
    d_model: int = 512
    d_kv: int = 64
    d_ff: int = 1024
    num_layers: int = 8
    num_heads: int = 6
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    feed_forward_proj: str = "gated-gelu"

    ignored: ClassVar[tuple] = (
        "architectures",
        "bos_token_id",
        "chunk_size_feed_forward",
        "classifier_dropout",
        "decoder_start_token_id",
        "dense_act_fn",
        "dropout_rate",
        "dtype",
        "eos_token_id",
        "finetuning_task",
        "gradient_checkpointing",
        "id2label",
        "initializer_factor",
        "is_decoder",
        "is_encoder_decoder",
        "is_gated_act",
        "label2id",
        "model_type",
        "n_positions",
        "num_decoder_layers",
        "output_attentions",
        "output_hidden_states",
        "output_past",
        "pad_token_id",
        "problem_type",
        "return_dict",
        "task_specific_params",
        "tie_encoder_decoder",
        "tie_word_embeddings",
        "tokenizer_class",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    )

    def __post_init__(self):
        if self.feed_forward_proj != "gated-gelu":
            raise UserError(
                f"feed_forward_proj {self.feed_forward_proj!r} is not supported: mT5 and T5 v1.1 have 'gated-gelu'"
            )
