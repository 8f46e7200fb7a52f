"""The diffusion transformer of Open-Sora-Plan v1.3 (Lin et al. 2024, arXiv:2412.00131)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Optional, Union

import mindspore as ms
from mindspore import Tensor, nn, ops

from opensora.models.common.layers import Linear, scale_shift_table
from opensora.models.common.rows import repeat_rows
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
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")

    def __init__(self, **values):
        super().__init__()
        self.config = config = self.config_class.from_dict(values)
        assert config.out_channels is not None, "set by OpenSoraConfig"
        width = config.hidden_size
        self.pos_embed = PatchEmbed2D(config.patch_size, config.in_channels, width)
        self.caption_projection = TextProjection(config.caption_channels, width)
        self.adaln_single = AdaLayerNormSingle(width)
        self.transformer_blocks = nn.CellList([TransformerBlock(config, i) for i in range(config.num_layers)])
        self.blocks_to_run: Union[tuple, BlockStream] = tuple(self.transformer_blocks)
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
        timestep: Optional[Tensor],
        encoder_hidden_states: Optional[Tensor],
        attention_mask: Optional[Tensor] = None,
        encoder_attention_mask: Optional[Tensor] = None,
        text_states: Optional[tuple] = None,
        modulation: Optional[tuple] = None,
        condition: Optional[Tensor] = None,
    ) -> Tensor:
        """The prediction for a batch of noisy latents.

        With B rows of latents and a multiple of it, R, of texts, as in guided sampling, the result has R rows: row i is
        the prediction for the latents in row i % B and the text in row i. Everything before the first cross-attention
        is computed once for all texts.

        Args:
            hidden_states: noisy latents (B, C, T, H, W).
            timestep: (B,); None if `modulation` is given.
            encoder_hidden_states: text states (R, 1, L, caption_channels); None if `text_states` are given.
            attention_mask: (B, T, H, W), 1 for positions to attend to, 0 for padding; None: no padding.
            encoder_attention_mask: (R, 1, L), likewise for the text.
            text_states: precomputed by the method of that name.
            modulation: the result of `adaln_single`, of B rows, or of one for all.
            condition: precomputed by `condition_states`; only for models that have it.

        Returns:
            (R, out_channels, T, H, W).
        """
        x, inputs = self.prepare(
            hidden_states,
            timestep,
            encoder_hidden_states,
            attention_mask,
            encoder_attention_mask,
            text_states,
            modulation,
            condition,
        )
        return self.head(self.run_blocks(x, 0, self.config.num_layers, inputs), inputs)

    def prepare(
        self,
        hidden_states: Tensor,
        timestep: Optional[Tensor],
        encoder_hidden_states: Optional[Tensor],
        attention_mask: Optional[Tensor] = None,
        encoder_attention_mask: Optional[Tensor] = None,
        text_states: Optional[tuple] = None,
        modulation: Optional[tuple] = None,
        condition: Optional[Tensor] = None,
    ) -> tuple:
        """The tokens (B, s, D) before block 0, and what `run_blocks` and `head` need; arguments as of `construct`.

        The tokens are those of this process. They are float32: the residual stream adds up the outputs of many blocks,
        and PyTorch's autocast keeps it in float32, too.
        """
        if encoder_hidden_states is not None:
            text_states = (self.caption_projection(encoder_hidden_states[:, 0]),) * self.config.num_layers
        if modulation is None:
            modulation = self.adaln_single(timestep)
        _, _, t, h, w = hidden_states.shape
        grid = (t, h // self.config.patch_size, w // self.config.patch_size)
        x = self.embed(hidden_states, condition)
        dtype = x.dtype
        x = self.sequence.split(x)
        text_mask = None
        if encoder_attention_mask is not None:
            text_mask = prepare_attention_mask(encoder_attention_mask[:, 0], x.shape[1], dtype)
        return x.astype(ms.float32), (grid, dtype, modulation, attention_mask, text_states, text_mask)

    def run_blocks(self, x: Tensor, first: int, end: int, inputs: tuple) -> Tensor:
        """The tokens (R, s, D) after block `end` - 1, from those before block `first`: (B, s, D) for block 0."""
        grid, dtype, (modulation, _), attention_mask, text_states, text_mask = inputs
        t, h, w = grid
        cos = rope_cos(t, h, w, self.config.attention_head_dim, self.scales)
        sin = rope_sin(t, h, w, self.config.attention_head_dim, self.scales)
        attn_masks = self.self_attn_masks(attention_mask, x.shape[0], t * h * w, dtype)
        for i, block in enumerate(self.blocks_to_run[first:end]):
            rows = x.shape[0]
            mask = attn_masks[self.mask_of_block[first + i]]
            x = block(x, modulation, mask, cos, sin, text_states[first + i], text_mask)
            if x.shape[0] != rows:  # block 0 has made a row for each text
                modulation = repeat_rows(modulation, x.shape[0])
                attn_masks = self.self_attn_masks(attention_mask, x.shape[0], t * h * w, dtype)
        return x

    def head(self, x: Tensor, inputs: tuple) -> Tensor:
        """The prediction (R, out_channels, T, H, W) from the tokens (R, s, D) after the last block."""
        (t, h, w), (_, embedded) = inputs[0], inputs[2]
        embedded = repeat_rows(embedded, x.shape[0])
        modulation = self.scale_shift_table + embedded.expand_dims(1)
        x = self.proj_out(modulated_layer_norm(x, modulation, 0, 1e-6))
        return self.unpatchify(self.sequence.gather(x, t * h * w), t, h, w)

    def parallelize(self, sequence: NoSequenceParallel) -> None:
        """Shards the tokens over the processes of `sequence`'s group."""
        self.sequence = sequence
        for block in self.transformer_blocks:
            block.attn1.sequence = sequence

    def replace_blocks(self, blocks: Iterable) -> None:
        """Runs other Cells in place of the transformer blocks: a stream, or wrappers that gather sharded weights."""
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

    def embed(self, hidden_states: Tensor, condition: Optional[Tensor] = None) -> Tensor:
        """(B, C, T, H, W) -> tokens (B, S, D)."""
        return self.pos_embed(hidden_states)

    def self_attn_masks(self, attention_mask: Optional[Tensor], batch: int, length: int, dtype) -> tuple:
        """Masks for dense, single-skip and group-skip self-attention of tensors of `dtype`; None without padding."""
        mask = None
        if attention_mask is not None:
            p = self.config.patch_size
            _, t, h, w = attention_mask.shape
            patches = repeat_rows(attention_mask, batch).astype(ms.float32).reshape(batch * t, h // p, p, w // p, p)
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
