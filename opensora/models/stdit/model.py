"""STDiT2, the diffusion transformer of Open-Sora v1.1 (hpcaitech, github.com/hpcaitech/Open-Sora, tag v1.1.0)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Optional, Union

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.common.initializer import Normal

from opensora.checkpoint.files import find_weights, open_state, resolve_path
from opensora.checkpoint.lazy_tensor import ArrayTensor, LazyTensor, summarize
from opensora.errors import UserError
from opensora.models.pretrained import PretrainedModel
from opensora.models.stdit.blocks import FinalLayer, STDiT2Block
from opensora.models.stdit.config import STDiT2Config
from opensora.models.stdit.embeddings import (
    SMALL,
    CaptionEmbedder,
    FramePositions,
    Modulation,
    PatchEmbed3D,
    ScalarEmbedder,
)
from opensora.models.streaming import BlockStream
from opensora.ops.attention import prepare_attention_mask
from opensora.ops.layout import permute
from opensora.ops.rope import interleaved_cos, interleaved_sin, inverse_frequencies
from opensora.utils.logs import logger

NULL_TEXT, ROPE = "y_embedder.y_embedding", "rope.freqs"


class STDiT2(PretrainedModel):
    """Predicts noise and its variance from noisy latents, conditioned on timestep, text, size, length and frame rate.

    Letters: B batch, C channels, T H W latent frames, height, width; t h w tokens; L tokens of the text.
    """

    config_class = STDiT2Config
    config: STDiT2Config
    block_list = "blocks"
    # Tables of older files. The RoPE frequencies are computed, because 16-bit files have them rounded.
    ignored_prefixes = ("pos_embed", ROPE)

    def __init__(self, **values):
        super().__init__()
        self.config = config = STDiT2Config.from_dict(values)
        width, patch = config.hidden_size, tuple(config.patch_size)
        self.head_dim, self.out_channels = config.head_dim, config.out_channels  # graph mode reads no properties
        self.x_embedder = PatchEmbed3D(patch, config.in_channels, width)
        self.positions = FramePositions(width, config.input_sq_size)
        self.t_embedder = ScalarEmbedder(width, Normal(SMALL))
        self.csize_embedder = ScalarEmbedder(width // 3)
        self.ar_embedder = ScalarEmbedder(width // 3)
        self.fl_embedder = ScalarEmbedder(width)
        self.fps_embedder = ScalarEmbedder(width)
        self.t_block = Modulation(width, 6)
        self.t_block_temp = Modulation(width, 3)
        self.y_embedder = CaptionEmbedder(config.caption_channels, width, config.model_max_length)
        self.blocks = nn.CellList([STDiT2Block(config) for _ in range(config.depth)])
        self.blocks_to_run: Iterable = tuple(self.blocks)
        self.final_layer = FinalLayer(width, int(np.prod(patch)) * config.out_channels)
        self._freeze(config.freeze)

    def construct(
        self,
        x: Tensor,
        timestep: Tensor,
        y: Tensor,
        mask: Optional[Tensor] = None,
        x_mask: Optional[Tensor] = None,
        num_frames: Optional[Tensor] = None,
        height: Optional[Tensor] = None,
        width: Optional[Tensor] = None,
        ar: Optional[Tensor] = None,
        fps: Optional[Tensor] = None,
    ) -> Tensor:
        """The prediction for a batch of noisy latents.

        Args:
            x: noisy latents (B, C, T, H, W).
            timestep: (B,).
            y: text states (B, 1, L, caption_channels).
            mask: (B, L), 1 for text tokens, 0 for padding; None: no padding.
            x_mask: (B, T) bool, False for conditioning frames, whose timestep is 0; None: no conditioning frames.
            num_frames: (B,), frames of the video.
            height: (B,), in pixels.
            width: (B,), in pixels.
            ar: (B,), height / width.
            fps: (B,).

        All arguments after y may have fewer rows, of which B must be a multiple: they are repeated.

        Returns:
            (B, out_channels, T, H, W) float32.

        Raises:
            ValueError: num_frames, height, width, ar or fps is missing.
        """
        if num_frames is None or height is None or width is None or ar is None or fps is None:
            # Graph mode compiles only Python's own exception classes.
            raise ValueError("STDiT2 needs num_frames, height, width, ar and fps of every sample")
        batch, frames = x.shape[0], x.shape[2]
        dtype = self.x_embedder.proj.dtype()
        height, width = _repeated(height, batch), _repeated(width, batch)

        tokens = self.x_embedder(x)  # B t h w C
        _, t, h, w, _ = tokens.shape
        # The residual stream is float32: it adds up the outputs of many blocks.
        tokens = tokens.reshape(batch, t, h * w, -1).astype(ms.float32) + self.positions(h, w, height, width)

        size = ops.cat(
            (self.csize_embedder(height), self.csize_embedder(width), self.ar_embedder(_repeated(ar, batch))), 1
        )
        length = self.fl_embedder(_repeated(num_frames, batch)) + self.fps_embedder(_repeated(fps, batch))
        time = self.t_embedder(timestep)
        modulation, temporal = self.t_block(time + size).expand_dims(1), self.t_block_temp(time + length).expand_dims(1)
        t0 = None
        if x_mask is not None:
            x_mask = _repeated(x_mask, batch).astype(ms.bool_)
            zero = self.t_embedder(ops.zeros_like(timestep))
            t0, frame = zero + size, x_mask.expand_dims(2)  # B T 1
            modulation = ops.where(frame, modulation, self.t_block(t0).expand_dims(1))  # B T 6C
            temporal = ops.where(frame, temporal, self.t_block_temp(zero + length).expand_dims(1))
        modulation, temporal = modulation.expand_dims(2), temporal.expand_dims(2)

        text = self.y_embedder(y[:, 0])
        text_mask = None
        if mask is not None:
            mask = _repeated(mask.reshape(-1, y.shape[2]), batch)
            text_mask = prepare_attention_mask(mask, t * h * w, dtype)
        cos, sin = interleaved_cos(t, self.head_dim), interleaved_sin(t, self.head_dim)
        for block in self.blocks_to_run:
            tokens = block(tokens, modulation, temporal, text, text_mask, cos, sin)

        patches = self.final_layer(tokens, time, x_mask, t0)
        return self.unpatchify(patches, t, h, w)[:, :, :frames, : x.shape[3], : x.shape[4]].astype(ms.float32)

    def unpatchify(self, x: Tensor, t: int, h: int, w: int) -> Tensor:
        """Patches (B, t, h w, pt ph pw C) -> (B, C, T, H, W)."""
        (pt, ph, pw), c = self.x_embedder.patch_size, self.out_channels
        x = permute(x.reshape(-1, t, h, w, pt, ph, pw, c), (0, 7, 1, 4, 2, 5, 3, 6))  # B C t pt h ph w pw
        return x.reshape(-1, c, t * pt, h * ph, w * pw)

    def null_text(self, n: int) -> Tensor:
        """The null text, repeated n times: (n, 1, L, caption_channels)."""
        return ops.tile(self.y_embedder.y_embedding, (n, 1, 1, 1))

    @property
    def transformer_blocks(self) -> nn.CellList:
        """The blocks, under the name that training uses for recompute and sharding."""
        return self.blocks

    def replace_blocks(self, blocks: Iterable) -> None:
        """Runs other Cells instead of the transformer blocks: a stream, or wrappers that gather sharded weights."""
        self.blocks_to_run = blocks if isinstance(blocks, BlockStream) else tuple(blocks)

    @classmethod
    def from_pretrained(
        cls,
        path: Union[str, Path],
        dtype=ms.float32,
        config: Optional[Mapping[str, Any]] = None,
        use_ema: bool = True,
        weights: Optional[str] = None,
        streamed: bool = False,
        **changes: Any,
    ) -> STDiT2:
        """As `PretrainedModel.from_pretrained`; `path` may also be a training run with its weights in `model/`.

        Parameters that the file lacks keep their initial values, which is reported on stderr.

        Args:
            changes: override config.json; the whole configuration if there is none, as for Open-Sora's files.

        Raises:
            FileNotFoundError: no weights.
            UserError: damaged files, or weights of another model or another size.
        """
        path = resolve_path(path)
        source = find_weights(path / "model" if (path / "model").is_dir() else path)
        if config is None:
            config = cls.published_config(source) if (source.parent / "config.json").is_file() else {}
        config = {**config, **changes}
        state = open_state(source, use_ema)
        try:
            model = cls.without_weights(**config)
            missing, unexpected = model._check(model._canonical_names(state), strict=False)
            if len(missing) == len(model.parameters_dict()):
                raise UserError(f"holds none of the weights of {cls.__name__}")
            if missing:
                model = cls(**config)
            model._fill(state, dtype, strict=False, source=source, weights=weights, streamed=streamed)
        except ValueError as error:
            raise UserError(f"{source}: {error}") from error
        if missing or unexpected:
            logger.warning(
                f"{source}: {summarize('parameters are missing', missing)} and keep their initial values; "
                f"{summarize('tensors are not used', unexpected)}"
            )
        return model

    def torch_buffers(self) -> dict[str, np.ndarray]:
        return {ROPE: inverse_frequencies(self.config.head_dim).astype(np.float32)}

    def _canonical_names(self, state: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
        """Also adapts the null text to `model_max_length`: truncates it, or repeats its last row."""
        heads = self.config.num_heads
        if ROPE in state and tuple(state[ROPE].shape) != (self.config.head_dim // 2,):
            raise UserError(
                f"{ROPE} has {state[ROPE].shape[0]} frequencies, which do not match {heads} heads "
                f"(num_heads) of {self.config.head_dim} channels"
            )
        state = super()._canonical_names(state)
        if NULL_TEXT in state and state[NULL_TEXT].shape[0] != self.config.model_max_length:
            rows = np.minimum(np.arange(self.config.model_max_length), state[NULL_TEXT].shape[0] - 1)
            state[NULL_TEXT] = ArrayTensor(state[NULL_TEXT].numpy()[rows])
        return state

    def _freeze(self, which: Optional[str]) -> None:
        for name, parameter in self.parameters_and_names():
            if which == "not_temporal" and "attn_temp" not in name or which == "text" and "cross_attn" in name:
                parameter.requires_grad = False


def _repeated(values: Tensor, batch: int) -> Tensor:
    """(b, ...) -> (B, ...)."""
    return ops.tile(values, (batch // values.shape[0],) + (1,) * (values.ndim - 1))
