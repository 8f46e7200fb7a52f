"""The text encoder of CLIP (Radford et al. 2021, arXiv:2103.00020, section 2.4).

`opensora.models.vision.clip` has both encoders; the layers are the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Union

import mindspore as ms
from mindspore import Tensor, nn, ops

from opensora.checkpoint.lazy_tensor import LazyTensor
from opensora.models.common.layers import Embedding, LayerNorm, Linear
from opensora.models.pretrained import PretrainedModel
from opensora.models.streaming import BlockStream
from opensora.models.text_encoder.clip_config import CLIPTextConfig, CLIPTowerConfig
from opensora.ops.activations import gelu, quick_gelu
from opensora.ops.attention import attention, causal_attention
from opensora.ops.linear import rows_at

INITIAL_STD = 0.02  # of the embeddings
TOKENS = "text_model.embeddings.token_embedding.weight"


class SelfAttention(nn.Cell):
    """Attention to all tokens, or with `causal` to the same and earlier ones. (B, L, D) -> (B, L, D)."""

    def __init__(self, config: CLIPTowerConfig, causal: bool):
        super().__init__()
        width = config.hidden_size
        self.q_proj, self.k_proj = Linear(width, width), Linear(width, width)
        self.v_proj, self.out_proj = Linear(width, width), Linear(width, width)
        self.heads, self.causal = config.num_attention_heads, causal

    def construct(self, x: Tensor) -> Tensor:
        b, length, _ = x.shape
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        heads = b, length, self.heads, -1
        q, k, v = q.reshape(heads), k.reshape(heads), v.reshape(heads)
        y = causal_attention(q, k, v) if self.causal else attention(q, k, v)
        return self.out_proj(y.reshape(b, length, -1))


class MLP(nn.Cell):
    """Linear, `hidden_act`, linear."""

    def __init__(self, config: CLIPTowerConfig):
        super().__init__()
        self.fc1 = Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = Linear(config.intermediate_size, config.hidden_size)
        self.is_quick = config.hidden_act == "quick_gelu"

    def construct(self, x: Tensor) -> Tensor:
        h = self.fc1(x)
        return self.fc2(quick_gelu(h) if self.is_quick else gelu(h))


class Layer(nn.Cell):
    """Self-attention and MLP, each with a norm before it and a residual connection. (B, L, D) -> (B, L, D)."""

    def __init__(self, config: CLIPTowerConfig, causal: bool):
        super().__init__()
        self.self_attn = SelfAttention(config, causal)
        self.layer_norm1 = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = MLP(config)
        self.layer_norm2 = LayerNorm(config.hidden_size, config.layer_norm_eps)

    def construct(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Embeddings(nn.Cell):
    """Token ids (B, L) -> the embeddings of tokens and of their positions, (B, L, D)."""

    def __init__(self, config: CLIPTextConfig):
        super().__init__()
        self.token_embedding = Embedding(config.vocab_size, config.hidden_size, INITIAL_STD)
        self.position_embedding = Embedding(config.max_position_embeddings, config.hidden_size, INITIAL_STD)

    def construct(self, input_ids: Tensor) -> Tensor:
        return self.token_embedding(input_ids) + self.position_embedding.weight[: input_ids.shape[1]]


class Encoder(nn.Cell):
    """The layers, under their published name."""

    def __init__(self, config: CLIPTowerConfig, causal: bool):
        super().__init__()
        self.layers = nn.CellList([Layer(config, causal) for _ in range(config.num_hidden_layers)])
        self.blocks_to_run: Union[tuple, BlockStream] = tuple(self.layers)

    def construct(self, x: Tensor) -> Tensor:
        for layer in self.blocks_to_run:
            x = layer(x)
        return x


class TextTransformer(nn.Cell):
    """Token ids (B, L) -> normalized states (B, L, D), and those of the end tokens (B, D).

    Raises:
        ValueError: more tokens than the model has positions.
    """

    def __init__(self, config: CLIPTextConfig):
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config, causal=True)
        self.final_layer_norm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        # Graph mode reads no properties. None: the token with the largest id ends a text.
        self.end_token, self.longest = config.end_token, config.max_position_embeddings

    def construct(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        b, length = input_ids.shape
        if length > self.longest:
            # Graph mode compiles only Python's own exception classes.
            raise ValueError(f"{length} tokens, but the model has positions for {self.longest}")
        states = self.final_layer_norm(self.encoder(self.embeddings(input_ids)))
        rows = ops.arange(b) * length + self.end_positions(input_ids)
        return states, rows_at(states.reshape(b * length, -1), rows)

    def end_positions(self, input_ids: Tensor) -> Tensor:
        """The position of the first end token of each text, (B,); 0 if there is none."""
        end = ops.amax(input_ids, 1, True) if self.end_token is None else self.end_token
        countdown = ops.arange(input_ids.shape[1], 0, -1).astype(ms.float32)
        return ops.argmax((input_ids == end).astype(ms.float32) * countdown, 1)


class CLIPTextModel(PretrainedModel):
    """Token ids (B, L) -> states (B, L, D), and the pooled state of each text (B, D), that of its end token.

    There is no mask of padding: tokens attend to earlier ones alone. Loads the text encoder of a full CLIP checkpoint;
    the image encoder's weights are not read.
    """

    config_class = CLIPTextConfig
    config: CLIPTextConfig
    published_as = ("clip_text_model", "clip", "CLIPModel")
    ignored_prefixes = (
        "text_model.embeddings.position_ids",
        "vision_model.",
        "visual_projection.",
        "text_projection.",
        "logit_scale",
    )
    block_list = "text_model.encoder.layers"
    lora_targets = ("q_proj", "k_proj", "v_proj", "out_proj")
    tables = (TOKENS,)

    def __init__(self, **values):
        super().__init__()
        self.config = CLIPTextConfig.from_dict(values)
        self.text_model = TextTransformer(self.config)

    def construct(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """The states and the pooled states; see `TextTransformer`."""
        return self.text_model(input_ids)

    def replace_blocks(self, blocks: Iterable) -> None:
        self.text_model.encoder.blocks_to_run = blocks if isinstance(blocks, BlockStream) else tuple(blocks)

    def _open_tables(self, tables: Mapping[str, LazyTensor]) -> None:
        embedding = self.text_model.embeddings.token_embedding
        embedding.file_table, embedding.dtype = tables[TOKENS], self.dtype
