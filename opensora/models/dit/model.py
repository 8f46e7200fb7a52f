"""The diffusion transformer of Open-Sora-Plan v1.3 (Lin et al. 2024, arXiv:2412.00131)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Optional

import mindspore as ms
from mindspore import Tensor, nn, ops

from opensora.models.common.layers import Linear, scale_shift_table
from opensora.models.dit.blocks import TransformerBlock
from opensora.models.dit.config import OpenSoraConfig
from opensora.models.dit.embeddings import AdaLayerNormSingle, PatchEmbed2D, TextProjection
from opensora.models.dit.skiparse import Skiparse
from opensora.models.pretrained import PretrainedModel
from opensora.models.streaming import BlockStream
from opensora.ops.attention import prepare_attention_mask
from opensora.ops.layout import permute
from opensora.ops.norms import modulated_layer_norm
from opensora.ops.rope import rope_cos, rope_sin
from opensora.parallel.sequence import NoSequenceParallel


class OpenSoraT2V_v1_3(PretrainedModel):
    """Predicts noise or velocity from noisy latents, conditioned on the timestep and the text.

    Letters: B batch, C channels, T H W latent frames, height, width; S tokens of the video, L tokens of the text.
    """

    config_class: type[OpenSoraConfig] = OpenSoraConfig
    config: OpenSoraConfig
    keep_float32 = ("scale_shift_table",)
    block_list = "transformer_blocks"

    def __init__(self, **values):
        super().__init__()
        self.config = config = self.config_class.from_dict(values)
        assert config.out_channels is not None, "set by OpenSoraConfig"
        width = config.hidden_size
        self.pos_embed = PatchEmbed2D(config.patch_size, config.in_channels, width)
        self.caption_projection = TextProjection(config.caption_channels, width)
        self.adaln_single = AdaLayerNormSingle(width)
        self.transformer_blocks = nn.CellList([TransformerBlock(config, i) for i in range(config.num_layers)])
        self.blocks_to_run: Iterable = tuple(self.transformer_blocks)
        self.scale_shift_table = scale_shift_table(2, width)
        self.proj_out = Linear(width, config.patch_size**2 * config.out_channels)

        self.scales = (config.interpolation_scale_t, config.interpolation_scale_h, config.interpolation_scale_w)
        self.skips = (Skiparse(config.sparse_n, False), Skiparse(config.sparse_n, True))
        self.sequence = NoSequenceParallel()
        # Index into `self_attn_masks` of each block: 0 dense, 1 single skip, 2 group skip.
        self.mask_of_block = tuple(1 + i % 2 if config.is_sparse(i) else 0 for i in range(config.num_layers))

    def construct(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Optional[Tensor],
        attention_mask: Optional[Tensor] = None,
        encoder_attention_mask: Optional[Tensor] = None,
        text_states: Optional[tuple] = None,
    ) -> Tensor:
        """The prediction for a batch of noisy latents.

        Args:
            hidden_states: noisy latents (B, C, T, H, W).
            timestep: (B,).
            encoder_hidden_states: text states (B, 1, L, caption_channels); None if `text_states` are given.
            attention_mask: (B, T, H, W), 1 for positions to attend to, 0 for padding; None: no padding.
            encoder_attention_mask: (B, 1, L), likewise for the text.
            text_states: precomputed by the method of that name.

        Returns:
            (B, out_channels, T, H, W).
        """
        text = None if encoder_hidden_states is None else self.caption_projection(encoder_hidden_states[:, 0])
        config = self.config
        _, _, t, h, w = hidden_states.shape
        h, w = h // config.patch_size, w // config.patch_size

        x = self.embed(hidden_states)
        length = x.shape[1]
        modulation, embedded = self.adaln_single(timestep)
        cos = rope_cos(t, h, w, config.attention_head_dim, self.scales)
        sin = rope_sin(t, h, w, config.attention_head_dim, self.scales)
        attn_masks = self.self_attn_masks(attention_mask, x.shape[0], length, x.dtype)
        x = self.sequence.split(x)
        text_mask = None
        if encoder_attention_mask is not None:
            text_mask = prepare_attention_mask(encoder_attention_mask[:, 0], x.shape[1], x.dtype)
        # The residual stream adds up the outputs of many blocks. PyTorch's autocast keeps it in float32, too.
        x = x.astype(ms.float32)
        for i, block in enumerate(self.blocks_to_run):
            block_text = text if text_states is None else text_states[i]
            x = block(x, modulation, attn_masks[self.mask_of_block[i]], cos, sin, block_text, text_mask)

        shift, scale = ops.split(self.scale_shift_table + embedded.expand_dims(1), 1, 1)
        x = self.proj_out(modulated_layer_norm(x, shift, scale, 1e-6))
        return self.unpatchify(self.sequence.gather(x, length), t, h, w)

    def parallelize(self, sequence: NoSequenceParallel) -> None:
        """Shards the tokens over the processes of `sequence`'s group."""
        self.sequence = sequence
        for block in self.transformer_blocks:
            block.attn1.sequence = sequence

    def replace_blocks(self, blocks: Iterable) -> None:
        """Runs other Cells instead of the transformer blocks: a stream, or wrappers that gather sharded weights."""
        self.blocks_to_run = blocks if isinstance(blocks, BlockStream) else tuple(blocks)

    def text_states(self, encoder_hidden_states: Tensor) -> tuple:
        """The cross-attention keys and values of every block, which depend on the text alone.

        (B, 1, L, caption_channels) -> for each block a pair of (B, L, heads head_dim).
        """
        text = self.caption_projection(encoder_hidden_states[:, 0])
        states: tuple = ()
        blocks = self.transformer_blocks
        if isinstance(self.blocks_to_run, BlockStream):
            blocks = self.blocks_to_run.only("attn2.to_k", "attn2.to_v")
        for block in blocks:
            states = states + (block.attn2.keys_values(text),)
        return states

    def embed(self, hidden_states: Tensor) -> Tensor:
        """(B, C, T, H, W) -> tokens (B, S, D)."""
        return self.pos_embed(hidden_states)

    def self_attn_masks(self, attention_mask: Optional[Tensor], batch: int, length: int, dtype) -> tuple:
        """Masks for dense, single-skip and group-skip self-attention of tensors of `dtype`; None without padding."""
        mask = None
        if attention_mask is not None:
            p = self.config.patch_size
            b, t, h, w = attention_mask.shape
            patches = attention_mask.astype(ms.float32).reshape(b * t, h // p, p, w // p, p)
            # A patch with any position to attend to is attended to. A maximum over axes, because Ascend's max-pooling
            # operator computes float16 only.
            mask = ops.ReduceMax()(patches, (2, 4)).reshape(batch, length)
        masks: tuple = (None if mask is None else prepare_attention_mask(mask, length, dtype),)
        for skip in self.skips:
            if mask is None and skip.padding(length) == 0:
                masks = masks + (None,)
            else:
                tokens = ops.ones((batch, length), ms.float32) if mask is None else mask
                tokens = skip.split(tokens.expand_dims(2))[:, :, 0]  # B n, S'/n
                masks = masks + (prepare_attention_mask(tokens, tokens.shape[1], dtype),)
        return masks

    def unpatchify(self, x: Tensor, t: int, h: int, w: int) -> Tensor:
        """Tokens (B, S, p p C) -> (B, C, T, p h, p w)."""
        p, c = self.config.patch_size, self.config.out_channels
        x = permute(x.reshape(-1, t, h, w, p, p, c), (0, 6, 1, 2, 4, 3, 5))  # B C T h p w p
        return x.reshape(-1, c, t, h * p, w * p)
