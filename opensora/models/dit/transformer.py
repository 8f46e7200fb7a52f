"""What the diffusion transformers of Open-Sora-Plan have in common.

Letters: B batch, C channels, T H W latent frames, height, width; S tokens of the video, L tokens of the text, R texts.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Optional, Union

import mindspore as ms
from mindspore import Tensor, nn, ops

from opensora.models.common.layers import Linear, scale_shift_table
from opensora.models.common.rows import repeat_rows
from opensora.models.dit.blocks import TransformerBlock
from opensora.models.dit.config import TransformerConfig
from opensora.models.dit.embeddings import AdaLayerNormSingle, PatchEmbed2D, TextProjection
from opensora.models.dit.skiparse import Skiparse
from opensora.models.pretrained import PretrainedModel
from opensora.models.streaming import BlockStream
from opensora.ops.attention import prepare_attention_mask
from opensora.ops.layout import permute
from opensora.ops.norms import modulated_layer_norm
from opensora.ops.rope import rope_cos, rope_sin
from opensora.parallel.sequence import NoSequenceParallel


class VideoTransformer(PretrainedModel):
    """Embeddings, blocks with AdaLN-single modulation and cross-attention to the text, and the head.

    A forward pass has three stages, which step caching calls separately: `prepare`, `run_blocks` and `head`.
    """

    config_class: type[TransformerConfig]
    config: TransformerConfig
    keep_float32 = ("scale_shift_table",)
    block_list = "transformer_blocks"
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")
    # Which of `blocks_to_run` have cross-attention.
    blocks_with_text = slice(None)

    def __init__(self, **values):
        super().__init__()
        self.config = config = self.config_class.from_dict(values)
        assert config.out_channels is not None, "set by TransformerConfig"
        width = config.hidden_size
        self.pos_embed = PatchEmbed2D(config.patch_size, config.in_channels, width)
        self.caption_projection = TextProjection(config.caption_channels, width)
        self.adaln_single = AdaLayerNormSingle(width)
        self.transformer_blocks = nn.CellList([self.make_block(i) for i in range(config.num_layers)])
        self.blocks_to_run: Union[tuple, BlockStream] = tuple(self.transformer_blocks)
        self.block_count = config.num_layers  # of `ordered_blocks`
        self.scale_shift_table = scale_shift_table(2, width)
        self.proj_out = Linear(width, config.patch_size**2 * config.out_channels)
        self.sequence = NoSequenceParallel()

    def make_block(self, index: int) -> nn.Cell:
        """Block number `index` of `transformer_blocks`."""
        raise NotImplementedError(f"{type(self).__name__} has no blocks")

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
            encoder_hidden_states: text states (R, 1, L, caption_channels) or (R, L, caption_channels); None if
                `text_states` are given.
            attention_mask: (B, T, H, W), 1 for positions to attend to, 0 for padding; None: no padding.
            encoder_attention_mask: (R, 1, L) or (R, L), likewise for the text.
            text_states: precomputed by the method of that name.
            modulation: the result of `adaln_single`, of B rows, or of one for all.
            condition: precomputed by `condition_states`; only for models that have it.

        Returns:
            (R, out_channels, T, H, W).
        """
        return self.predict(
            hidden_states,
            timestep,
            encoder_hidden_states,
            attention_mask,
            encoder_attention_mask,
            text_states,
            modulation,
            condition,
        )

    def predict(self, *inputs) -> Tensor:
        """The three stages; inputs as of `prepare`."""
        x, prepared = self.prepare(*inputs)
        return self.head(self.run_blocks(x, 0, self.block_count, prepared), prepared)

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
            text_states = (self.projected(encoder_hidden_states),) * self.config.num_layers
        if modulation is None:
            modulation = self.adaln_single(timestep)
        _, _, t, h, w = hidden_states.shape
        grid = (t, h // self.config.patch_size, w // self.config.patch_size)
        dtype = self.pos_embed.proj.dtype()
        x = self.sequence.split(self.embed(hidden_states, condition))
        text_mask = None
        if encoder_attention_mask is not None:
            mask = encoder_attention_mask.reshape(-1, encoder_attention_mask.shape[-1])
            text_mask = prepare_attention_mask(mask, x.shape[1], dtype)
        return x.astype(ms.float32), (grid, dtype, modulation, attention_mask, text_states, text_mask)

    def run_blocks(self, x: Tensor, first: int, end: int, inputs: tuple) -> Tensor:
        """The tokens (R, s, D) after block `end` - 1, from those before block `first`: (B, s, D) for block 0."""
        raise NotImplementedError(f"{type(self).__name__} has no blocks")

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
        for block in self.ordered_blocks():
            block.attn1.sequence = sequence

    def replace_blocks(self, blocks: Iterable) -> None:
        """Runs other Cells in place of the transformer blocks: a stream, or wrappers that gather sharded weights."""
        self.blocks_to_run = blocks if isinstance(blocks, BlockStream) else tuple(blocks)

    def text_states(self, encoder_hidden_states: Tensor) -> tuple:
        """The cross-attention keys and values of every block, which depend on the text alone.

        (R, 1, L, caption_channels) -> for each block a pair of (R, L, heads head_dim).
        """
        text = self.projected(encoder_hidden_states)
        states: tuple = ()
        blocks = self.transformer_blocks
        if isinstance(self.blocks_to_run, BlockStream):
            blocks = self.blocks_to_run[self.blocks_with_text].only("attn2.to_k", "attn2.to_v")
        for block in blocks:
            states = states + (block.attn2.keys_values(text),)
        return states

    def projected(self, encoder_hidden_states: Tensor) -> Tensor:
        """(R, 1, L, caption_channels) or (R, L, caption_channels) -> (R, L, D)."""
        return self.caption_projection(encoder_hidden_states.reshape((-1,) + encoder_hidden_states.shape[-2:]))

    def embed(self, hidden_states: Tensor, condition: Optional[Tensor] = None) -> Tensor:
        """(B, C, T, H, W) -> tokens (B, S, D)."""
        return self.pos_embed(hidden_states)

    def patch_mask(self, attention_mask: Tensor) -> Tensor:
        """Mask of latents (B, T, H, W) -> of tokens (B, S) float32: attended to if any latent of the patch is."""
        p = self.config.patch_size
        b, t, h, w = attention_mask.shape
        patches = attention_mask.astype(ms.float32).reshape(b * t, h // p, p, w // p, p)
        # A maximum over axes, because Ascend's max-pooling operator computes float16 only.
        return ops.ReduceMax()(patches, (2, 4)).reshape(b, -1)

    def unpatchify(self, x: Tensor, t: int, h: int, w: int) -> Tensor:
        """Tokens (B, S, p p C) -> (B, C, T, p h, p w)."""
        p, c = self.config.patch_size, self.config.out_channels
        x = permute(x.reshape(-1, t, h, w, p, p, c), (0, 6, 1, 2, 4, 3, 5))  # B C T h p w p
        return x.reshape(-1, c, t, h * p, w * p)


class RotaryTransformer(VideoTransformer):
    """Blocks with self-attention over the tokens of all frames, dense or skiparse, with rotary position embedding.

    Attributes:
        scales: what positions are divided by, along time, height and width; infinity: no rotation.
    """

    scales: tuple[float, float, float]

    def __init__(self, **values):
        super().__init__(**values)
        groups = [self.config.attention_groups(i) for i in range(self.config.num_layers)]
        n = max(groups, default=1)
        self.skips = (Skiparse(n, False), Skiparse(n, True)) if n > 1 else ()
        # Index into `self_attn_masks` of each block: 0 dense, 1 single skip, 2 group skip.
        self.mask_of_block = tuple(1 + i % 2 if n > 1 else 0 for i, n in enumerate(groups))

    def make_block(self, index: int) -> TransformerBlock:
        return TransformerBlock(self.config, index)

    def run_blocks(self, x: Tensor, first: int, end: int, inputs: tuple) -> Tensor:
        """The tokens (R, s, D) after block `end` - 1, from those before block `first`: (B, s, D) for block 0."""
        grid, dtype, (modulation, _), attention_mask, text_states, text_mask = inputs
        t, h, w = grid
        cos = rope_cos(t, h, w, self.config.attention_head_dim, self.scales)
        sin = rope_sin(t, h, w, self.config.attention_head_dim, self.scales)
        modulation = repeat_rows(modulation, x.shape[0])
        attn_masks = self.self_attn_masks(attention_mask, x.shape[0], t * h * w, dtype)
        for i, block in enumerate(self.blocks_to_run[first:end]):
            rows = x.shape[0]
            mask = attn_masks[self.mask_of_block[first + i]]
            x = block(x, modulation, mask, cos, sin, text_states[first + i], text_mask)
            if x.shape[0] != rows:  # block 0 has made a row for each text
                modulation = repeat_rows(modulation, x.shape[0])
                attn_masks = self.self_attn_masks(attention_mask, x.shape[0], t * h * w, dtype)
        return x

    def self_attn_masks(self, attention_mask: Optional[Tensor], batch: int, length: int, dtype) -> tuple:
        """Masks for dense, single-skip and group-skip self-attention of tensors of `dtype`; None without padding."""
        mask = None if attention_mask is None else repeat_rows(self.patch_mask(attention_mask), batch)
        masks: tuple = (None if mask is None else prepare_attention_mask(mask, length, dtype),)
        for skip in self.skips:
            if mask is None and skip.padding(length) == 0:
                masks = masks + (None,)
            else:
                tokens = ops.ones((batch, length), ms.float32) if mask is None else mask
                tokens = skip.split(tokens.expand_dims(2))[:, :, 0]  # B n, S'/n
                masks = masks + (prepare_attention_mask(tokens, tokens.shape[1], dtype),)
        return masks
