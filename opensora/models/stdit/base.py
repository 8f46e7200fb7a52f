"""Base classes of the transformers of Open-Sora v1.0 and v1.1 (hpcaitech, github.com/hpcaitech/Open-Sora)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Optional, TypeVar, Union

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops
from mindspore.common.initializer import Normal

from opensora.checkpoint.files import find_weights, open_state, resolve_path
from opensora.checkpoint.lazy_tensor import ArrayTensor, LazyTensor, summarize
from opensora.errors import UserError
from opensora.models.common.rows import repeat_rows, text_rows
from opensora.models.dit.embeddings import frame_positions, time_positions
from opensora.models.pretrained import PretrainedModel
from opensora.models.stdit.config import FixedSizeConfig, HpcaitechConfig
from opensora.models.stdit.embeddings import SMALL, PatchEmbed3D, ScalarEmbedder
from opensora.models.streaming import BlockStream
from opensora.ops.attention import prepare_attention_mask
from opensora.ops.layout import permute
from opensora.utils.logs import logger

NULL_TEXT, PATCH_WEIGHT = "y_embedder.y_embedding", "x_embedder.proj.weight"

ModelT = TypeVar("ModelT", bound="HpcaitechTransformer")


class HpcaitechTransformer(PretrainedModel):
    """Loading, freezing and streaming of the transformers of Open-Sora v1.0 and v1.1, and their text.

    Subclasses have the parts `x_embedder` (`PatchEmbed3D`), `y_embedder` and `blocks`. A forward pass has three stages,
    which step caching calls separately: `prepare`, `run_blocks` and `head`.

    In guided sampling there are B rows of latents and a multiple of it, R, of texts, and the result has R rows: row i
    is the prediction for the latents in row i % B and the text in row i. Sampling computes `text_states` and the
    `modulations` of all timesteps once.

    Attributes:
        conditions: names of the inputs after x and timestep, in their order.
    """

    config: HpcaitechConfig
    conditions: tuple[str, ...] = ()
    depth: int  # graph mode reads no properties
    block_list = "blocks"
    lora_targets: tuple[str, ...] = ("qkv", "q_linear", "kv_linear", "proj")
    ignored_prefixes: tuple[str, ...] = ("pos_embed", "temp_embed")  # tables, which are computed
    blocks_to_run: Union[tuple, BlockStream]

    @classmethod
    def from_pretrained(
        cls: type[ModelT],
        path: Union[str, Path],
        dtype=ms.float32,
        config: Optional[Mapping[str, Any]] = None,
        use_ema: bool = True,
        weights: Optional[str] = None,
        streamed: bool = False,
        **changes: Any,
    ) -> ModelT:
        """As `PretrainedModel.from_pretrained`; `path` may also be a training run with its weights in `model/`.

        Parameters that the file lacks keep their initial values, which is reported on stderr. Training so starts from
        the weights of image models.

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
            missing, unexpected = model._check(model.canonical_names(state), strict=False)
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

    def canonical_names(self, state: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
        """Also gives the patch projection of an image model its time axis, and adapts the length of the null text.

        The null text is truncated to that of the model, or its last row is repeated.
        """
        state = super().canonical_names(state)
        null_text = self.own_parameters().get(NULL_TEXT)
        if null_text is not None and NULL_TEXT in state and state[NULL_TEXT].shape[0] != null_text.shape[0]:
            rows = np.minimum(np.arange(null_text.shape[0]), state[NULL_TEXT].shape[0] - 1)
            state[NULL_TEXT] = ArrayTensor(state[NULL_TEXT].numpy()[rows])
        if PATCH_WEIGHT in state and len(state[PATCH_WEIGHT].shape) == 4:
            state[PATCH_WEIGHT] = ArrayTensor(state[PATCH_WEIGHT].numpy()[:, :, None])
        return state

    def unpatchify(self, x: Tensor, t: int, h: int, w: int) -> Tensor:
        """Patches (B, t, h w, pt ph pw C) -> (B, C, T, H, W)."""
        pt, ph, pw = self.x_embedder.patch_size
        x = permute(x.reshape(x.shape[0], t, h, w, pt, ph, pw, -1), (0, 7, 1, 4, 2, 5, 3, 6))  # B C t pt h ph w pw
        return x.reshape(x.shape[0], -1, t * pt, h * ph, w * pw)

    def null_text(self, n: int) -> Tensor:
        """The null text, repeated n times: (n, 1, L, caption_channels)."""
        return ops.tile(self.y_embedder.y_embedding, (n, 1, 1, 1))

    def text_states(self, y: Tensor) -> tuple:
        """The cross-attention keys and values of every block, which depend on the text alone.

        (R, 1, L, caption_channels) -> for each block a pair of (R, L, heads head_dim).
        """
        text = self.y_embedder(y[:, 0])
        states: tuple = ()
        blocks = self.blocks
        if isinstance(self.blocks_to_run, BlockStream):
            blocks = self.blocks_to_run.only("cross_attn.kv_linear")
        for block in blocks:
            states = states + (block.cross_attn.keys_values(text),)
        return states

    def embed_text(
        self, y: Optional[Tensor], mask: Optional[Tensor], text_states: Optional[tuple], queries: int
    ) -> tuple:
        """What the cross-attention of each block attends to, and the mask for `attention`.

        Args:
            y: text states (R, 1, L, caption_channels); None if `text_states` are given.
            mask: (R, L), or fewer rows, of which R is a multiple; None: no padding.
            text_states: of the method of that name.
            queries: number of tokens of the video.
        """
        if y is not None:
            text_states = (self.y_embedder(y[:, 0]),) * self.depth
        if mask is None or text_states is None:
            return text_states, None
        mask = repeat_rows(mask.reshape(-1, mask.shape[-1]), text_rows(text_states[0]))
        return text_states, prepare_attention_mask(mask, queries, self.x_embedder.proj.dtype())

    def replace_blocks(self, blocks: Iterable) -> None:
        """Runs other Cells in place of the transformer blocks: a stream, or wrappers that gather sharded weights."""
        self.blocks_to_run = blocks if isinstance(blocks, BlockStream) else tuple(blocks)

    def freeze(self, which: Optional[str]) -> None:
        """Excludes from training all but temporal attention ("not_temporal"), or cross-attention ("text")."""
        for name, parameter in self.parameters_and_names():
            if which == "not_temporal" and "attn_temp" not in name or which == "text" and "cross_attn" in name:
                parameter.requires_grad = False


class FixedSizeTransformer(HpcaitechTransformer):
    """Base of the transformers of Open-Sora v1.0, whose latents have the size `input_size`.

    Position embeddings are sinusoidal. They are computed from the configuration, and files have them as buffers.

    Args:
        config: the configuration.
        space_scale: what positions in a frame are divided by.
        time_scale: what the positions of frames are divided by.
    """

    config: FixedSizeConfig
    position_names = ("pos_embed", "pos_embed_temporal")

    def __init__(self, config: FixedSizeConfig, space_scale: float = 1.0, time_scale: float = 1.0):
        super().__init__()
        self.config = config
        width = config.hidden_size
        # Graph mode reads no properties.
        self.width, self.input_size, self.grid = width, tuple(config.input_size), config.grid
        self.depth = config.depth
        self.spatial_base, self.space_scale, self.time_scale = config.spatial_base, space_scale, time_scale
        self.x_embedder = PatchEmbed3D(config.patch_size, config.in_channels, width)
        self.t_embedder = ScalarEmbedder(width, Normal(SMALL))

    def predict(self, *inputs: Any) -> Tensor:
        """The three stages; arguments as of `construct`."""
        tokens, prepared = self.prepare(*inputs)
        return self.head(self.run_blocks(tokens, 0, self.depth, prepared), prepared)

    def embed(self, x: Tensor) -> tuple[Tensor, tuple]:
        """Latents (B, C, T, H, W) -> tokens (B, t, h w, D) float32 with their positions in the frame, and (t, h, w).

        Raises:
            ValueError: latents of another size than `input_size`.
        """
        self.check_size(x.shape[2:])
        tokens = self.x_embedder(x).astype(ms.float32)  # B t h w D
        b, t, h, w, _ = tokens.shape
        return tokens.reshape(b, t, h * w, -1) + self.positions_in_frame(h, w), (t, h, w)

    def check_size(self, size: tuple) -> None:
        """Raises ValueError if latents of `size` (T, H, W) do not fit the model."""
        if tuple(size) != self.input_size:
            # Graph mode compiles only Python's own exception classes.
            raise ValueError(f"latents of {size} frames, rows and columns; input_size is {self.input_size}")

    def positions_in_frame(self, h: int, w: int) -> Tensor:
        """The position embedding of a frame, (h w, D) float32."""
        base = self.spatial_base
        trained = (h, w) if base is None else (base, base)
        return frame_positions((h, w), trained, (self.space_scale, self.space_scale), self.width)

    def positions_in_time(self) -> Tensor:
        """The position embedding of the frames, (t, 1, D) float32."""
        t = self.grid[0]
        return time_positions(t, t, self.time_scale, self.width)

    def prediction(self, patches: Tensor, grid: tuple) -> Tensor:
        """The patches of the final layer (B, t, h w, pt ph pw C) -> (B, C, T, H, W) float32."""
        return self.unpatchify(patches, *grid).astype(ms.float32)

    def torch_buffers(self) -> dict[str, np.ndarray]:
        spatial, temporal = self.positions_in_frame(*self.grid[1:]), self.positions_in_time()
        tables = spatial.asnumpy()[None], temporal.asnumpy().swapaxes(0, 1)
        return dict(zip(self.position_names, tables))
