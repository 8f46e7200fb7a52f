"""Tiling of CausalVAE: outputs against the reference, geometry of windows and tiles, refusals."""

from __future__ import annotations

from dataclasses import replace

import mindspore as ms
import numpy as np
import pytest
from golden_cases import case_names, relative_difference
from golden_models import CAUSAL_VAE_CASES, causal_vae_rows
from mindspore import Tensor
from tiny_models import CAUSAL_VAE

from opensora.models import CausalVAEModel
from opensora.models.causal_vae.tiling import PUBLISHED_TILING, Tiling, windows
from opensora.parallel.stream import LocalStream

TILED = [name for name in case_names("causalvae_", CAUSAL_VAE_CASES) if "tiled" in name]
TILING = Tiling(32, 4, 9, 3, 0.25)


def random(*shape, seed=0) -> Tensor:
    return Tensor(np.random.RandomState(seed).uniform(-1, 1, shape), ms.float32)


@pytest.mark.parametrize("name", TILED)
def test_output_matches_reference(name):
    rows = causal_vae_rows(name)
    assert max(rows.values()) < 1e-4, rows


def test_output_matches_reference_in_graph_mode():
    ms.set_context(mode=0)
    try:
        rows = causal_vae_rows("causalvae_v1_2_tiled_time")
    finally:
        ms.set_context(mode=1)
    assert max(rows.values()) < 1e-4, rows


@pytest.mark.parametrize(
    "frames, length, expected",
    [
        (1, 9, [(0, 1)]),
        (9, 9, [(0, 9)]),
        (10, 9, [(0, 9), (8, 10)]),
        (17, 9, [(0, 9), (8, 17)]),
        (20, 9, [(0, 9), (8, 17), (16, 20)]),
        (93, 29, [(0, 29), (28, 57), (56, 85), (84, 93)]),
        (300, None, [(0, 300)]),
    ],
)
def test_windows_share_a_frame(frames, length, expected):
    assert windows(frames, length) == expected


def average(x: Tensor) -> Tensor:
    """(B, C, T, H, W) -> the means of 8x8 pixels."""
    b, c, t, h, w = x.shape
    return x.reshape(b, c, t, h // 8, 8, w // 8, 8).mean((4, 6))


def repeat(z: Tensor) -> Tensor:
    """(B, C, T, h, w) -> 8x8 pixels of each latent."""
    return Tensor(z.asnumpy().repeat(8, 3).repeat(8, 4))


@pytest.mark.parametrize("height, width", [(8, 264), (200, 448), (256, 256), (392, 1000), (720, 1280)])
@pytest.mark.parametrize("tiling", PUBLISHED_TILING.values(), ids=PUBLISHED_TILING)
def test_tiles_of_published_sizes_meet(tiling, height, width):
    """A map of each position alone has the same result in tiles, so the blended tiles are at the right places."""
    tiling.check(8, 4)
    x = random(1, 1, 2, height, width)
    z = average(x)
    assert relative_difference(tiling.encode(x, average).asnumpy(), z.asnumpy()) < 1e-5
    assert relative_difference(tiling.decode(z, repeat).asnumpy(), repeat(z).asnumpy()) < 1e-6


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"tile_overlap_factor": 0.125},
            "32 pixels and 4 latents with an overlap of 0.125 do not meet: .*whole number",
        ),
        ({"tile_latent_min_size": 8}, "32 pixels and 8 latents"),
        ({"tile_overlap_factor": 1.0}, "overlap of 1.0"),
        ({"tile_sample_min_size_t": 8}, "windows of 8 frames do not meet: frames must be 4n[+]1"),
        ({"tile_sample_min_size_t": 1}, "windows of 1 frames"),
        ({"tile_latent_min_size_t": 1}, "windows of 1 latent frames"),
    ],
)
def test_tiles_that_do_not_meet_are_refused(changes, message):
    vae = CausalVAEModel.without_weights(**CAUSAL_VAE["v1.0"])
    with pytest.raises(ValueError, match=message):
        vae.enable_tiling(tiling=replace(TILING, **changes))
    assert not vae.use_tiling and vae.tiling == PUBLISHED_TILING["v1.0"]


def test_generations_have_their_published_tiling():
    for generation, values in CAUSAL_VAE.items():
        vae = CausalVAEModel.without_weights(**values)
        vae.enable_tiling()
        assert vae.tiling == PUBLISHED_TILING[generation]


def test_small_videos_are_processed_whole():
    vae = CausalVAEModel(**CAUSAL_VAE["v1.2"])
    x = random(1, 3, 9, 32, 24)
    z = vae.encode(x).mean
    video = vae.decode(z)
    vae.enable_tiling(tiling=TILING)
    assert (vae.encode(x).mean == z).all() and (vae.decode(z) == video).all()
    vae.enable_tiling(tiling=replace(TILING, tile_sample_min_size_t=5, tile_latent_min_size_t=2))
    assert (vae.encode(x).mean != z).any() and (vae.decode(z) != video).any()
    vae.enable_tiling(False)
    assert (vae.encode(x).mean == z).all()


class Member(LocalStream):
    """One of two processes; keeps its chunks."""

    size = 2

    def __init__(self, index: int):
        super().__init__()
        self.index = index
        self.chunks: list[np.ndarray] = []

    def gather_in_order(self, chunk, count):
        self.chunks.append(chunk.asnumpy())
        yield chunk


def test_windows_are_distributed_over_processes():
    vae, z = CausalVAEModel(**CAUSAL_VAE["v1.1"]), random(1, 4, 6, 2, 2)
    vae.enable_tiling(tiling=TILING)
    whole = vae.decode(z).asnumpy()
    assert [chunk.shape[2] for chunk in vae.decode_chunks(z)] == [9, 8, 4] and whole.shape[2] == 21
    members = [Member(0), Member(1)]
    for member in members:
        vae.share_decoding(member)
        list(vae.decode_chunks(z))
    assert [len(member.chunks) for member in members] == [2, 2]  # the last round has one window, which both decode
    chunks = [members[0].chunks[0], members[1].chunks[0], members[0].chunks[1]]
    assert (np.concatenate(chunks, 2) == whole).all()
