"""Device memory of the stages of a sampling run: text encoder, transformer, autoencoder.

Text encoder and autoencoder are the published ones, mT5-xxl and WFVAE, in the precision of the run. Weights are exact.
Working sets are estimates of the largest tensors that exist at the same time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from opensora.cost_model.cards import Card
from opensora.cost_model.compute import with_sum
from opensora.cost_model.footprint import memory
from opensora.cost_model.run import BYTES, Run

if TYPE_CHECKING:
    from opensora.models.causal_vae.model import CausalVAEModel
    from opensora.models.pretrained import PretrainedModel
    from opensora.models.text_encoder.mt5 import MT5EncoderModel
    from opensora.models.vaes import VAE

TEXT_ENCODER = {"vocab_size": 250112, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
AUTOENCODER = {"latent_dim": 8, "norm_type": "layernorm", "t_interpolation": "trilinear", "connect_res_layer_num": 2}


class Texts(NamedTuple):
    """The texts that a text encoder embeds.

    Attributes:
        length: tokens of a text.
        rows: texts that are computed together.
        in_pass: texts that are embedded each time a streamed encoder reads its weights.
    """

    length: int
    rows: int = 1
    in_pass: int = 1


def model_bytes(model: PretrainedModel, element: int) -> int:
    """Bytes of a model's weights with `element` bytes each, except those that stay float32."""
    single = model.float32_parameters()
    return sum(p.size * (BYTES["fp32"] if name in single else element) for name, p in model.parameters_and_names())


def text_encoder(run: Run) -> dict[str, float]:
    """Bytes of the published text encoder."""
    from opensora.models.text_encoder.mt5 import MT5EncoderModel

    model = MT5EncoderModel.without_weights(**TEXT_ENCODER)
    return with_sum(
        {
            "weights": model_bytes(model, run.bytes),
            **text_encoder_buffers(model, Texts(run.max_sequence_length), run.bytes),
        }
    )


def text_encoder_buffers(
    model: MT5EncoderModel, texts: Texts, element: float, streamed: bool = False
) -> dict[str, float]:
    """Bytes of the text encoder besides its weights, with `element` bytes for a number of the dtype it computes in.

    Working set: tensors (heads, L, L) in float32, and the three tensors (L, d_ff) of the gated feed-forward. On a CPU
    these are three of the position bias and for each text its sum with the mask and the 8-byte indices that MindSpore
    keeps of both; on an NPU sum, scores and probabilities, which are fewer. States (L, d_model): of all texts of a
    pass, as computed and in float32.
    """
    config, length = model.config, texts.length
    bias = config.num_heads * length**2 * BYTES["fp32"]
    working = 5 * bias + 3 * length * config.d_ff * element
    states = length * config.d_model * (element + BYTES["fp32"])
    return {
        "working set (estimate)": 3 * bias + texts.rows * working,
        "states": (texts.in_pass if streamed else texts.rows) * states,
    }


def autoencoder(run: Run) -> dict[str, float]:
    """Bytes of the published autoencoder."""
    from opensora.models.wfvae.model import WFVAEModel

    model = WFVAEModel.without_weights(**AUTOENCODER)
    return with_sum({"weights": model_bytes(model, run.bytes), **autoencoder_buffers(model, run)})


def autoencoder_buffers(model: VAE, run: Run, in_chunks: bool = True) -> dict[str, float]:
    """Bytes of the autoencoder, besides its weights, while it decodes the first chunk, the largest one.

    Args:
        in_chunks: along time; a CausalVAE decodes in tiles then.

    Working set: the input of the largest norm, of the block after the last upsampling, in the run's precision and three
    times in float32 (the norm's input, the centered and the normalized one). Cached frames: the end of every causal
    convolution's input, which the next chunk needs.
    """
    from opensora.models.wfvae.model import DECODE_CHUNK, WFVAEModel

    if not isinstance(model, WFVAEModel):
        return _causal_vae_buffers(model, run, in_chunks)
    _, t, h, w = run.latents
    frames = 2 * min(t, 1 + DECODE_CHUNK) - 1 if in_chunks else run.num_frames
    largest = run.batch_size * frames * 2 * model.config.base_channels * (4 * h) * (4 * w)
    return {
        "cached frames": run.batch_size * _cached_elements(model, h, w) * run.bytes if t > 1 else 0,
        "working set (estimate)": largest * (run.bytes + 3 * BYTES["fp32"]),
    }


def _causal_vae_buffers(model: CausalVAEModel, run: Run, in_tiles: bool) -> dict[str, float]:
    """`autoencoder_buffers` of a CausalVAE: the largest norm's input has the channels of level 1 in full resolution."""
    _, t, h, w = run.latents
    tiling, config = model.tiling, model.config
    if in_tiles:
        h, w = min(h, tiling.tile_latent_min_size), min(w, tiling.tile_latent_min_size)
        t = min(t, tiling.tile_latent_min_size_t or t)
    frames = config.temporal_stride * (t - 1) + 1
    area = config.spatial_stride**2 * h * w
    largest = run.batch_size * frames * config.level_channels[min(1, len(config.level_channels) - 1)] * area
    return {"working set (estimate)": largest * (run.bytes + 3 * BYTES["fp32"])}


def _cached_elements(model: PretrainedModel, h: int, w: int) -> int:
    """Elements of the frames that the decoder's causal convolutions cache, for latents of h x w."""
    from opensora.models.common.video_blocks import CausalConv3d

    decoder = model.decoder
    *up2, double2, last2 = decoder.up2.cell_list
    *up1, _, last1 = decoder.up1.cell_list
    levels = (
        (h * w, [decoder.conv_in, decoder.mid, decoder.connect_l2, *up2]),
        (4 * h * w, [double2, last2, decoder.connect_l1, *up1]),
        (16 * h * w, [last1, decoder.layer]),
    )
    return sum(
        area * inner.cache_frames * inner.conv.weight.shape[1]
        for area, cells in levels
        for cell in cells
        for _, inner in cell.cells_and_names()
        if isinstance(inner, CausalConv3d)
    )


def scores_in_blocks(run: Run, card: Card) -> int:
    """Bytes of attention scores where FlashAttention is missing: a block of scores, twice in 16 bits, twice in float32.

    A block has at most `SCORES_PER_BLOCK` elements.
    """
    if card.has_flash_attention:
        return 0
    from opensora.ops.attention import SCORES_PER_BLOCK

    heads = run.config.num_attention_heads // run.sp_size
    return min(SCORES_PER_BLOCK, run.batch * heads * run.tokens**2) * 2 * (run.bytes + BYTES["fp32"])


def stages(run: Run, card: Card) -> dict[str, dict[str, float]]:
    """Bytes of each stage of a sampling run by kind."""
    transformer = memory(run)
    weights, total = transformer["weights"], transformer["sum"]
    return {
        "text encoder": text_encoder(run),
        "transformer": with_sum(
            {"weights": weights, "working set (estimate)": total - weights + scores_in_blocks(run, card)}
        ),
        "autoencoder": autoencoder(run),
    }


def peak(of_stages: dict[str, dict[str, float]], save_memory: bool) -> float:
    """Bytes of a whole run: with `--save_memory` one stage's models at a time, otherwise all of them."""
    if save_memory:
        return max(stage["sum"] for stage in of_stages.values())
    weights = sum(stage["weights"] for stage in of_stages.values())
    return weights + max(stage["sum"] - stage["weights"] for stage in of_stages.values())
