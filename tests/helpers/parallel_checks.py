"""The checks that each process of tests/distributed/test_parallel.py runs under msrun."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]  # msrun starts it as a script

from opensora.process.supervision import supervise  # noqa: E402

if __name__ == "__main__":
    supervise()  # under msrun, before MindSpore is imported

import mindspore as ms  # noqa: E402
import numpy as np  # noqa: E402
from golden_cases import relative_difference  # noqa: E402
from mindspore import Tensor, nn, ops  # noqa: E402
from tiny_models import DIT, VAE  # noqa: E402

from opensora import device  # noqa: E402
from opensora.config.acceleration import CacheSettings  # noqa: E402
from opensora.config.command_line import run_main  # noqa: E402
from opensora.models import LatteT2V, OpenSoraT2V_v1_3, WFVAEModel  # noqa: E402
from opensora.models.pretrained import PretrainedModel  # noqa: E402
from opensora.parallel.collectives import AllGather, AllReduce, AllToAll, Broadcast, ReduceScatter  # noqa: E402
from opensora.parallel.groups import Group, VideoGroups, sequence_group, video_groups  # noqa: E402
from opensora.parallel.process_group import World  # noqa: E402
from opensora.parallel.sequence import UlyssesSequenceParallel  # noqa: E402
from opensora.parallel.stream import ContextParallelStream  # noqa: E402
from opensora.pipelines.denoise import DenoiseSettings, denoise  # noqa: E402
from opensora.pipelines.text import TextEmbedding  # noqa: E402
from opensora.schedulers import get_scheduler  # noqa: E402

THREE_LAYERS = {**DIT, "num_layers": 3}  # two dense blocks, one sparse
LATTE = dict(
    num_attention_heads=4,
    attention_head_dim=24,
    in_channels=4,
    num_layers=2,
    cross_attention_dim=96,
    caption_channels=32,
    sample_size=[8, 8],
    video_length=3,
)


def member_input(rank: int) -> np.ndarray:
    return np.random.RandomState(rank).standard_normal((2, 4, 8, 3)).astype(np.float32)


def weight_of(rank: int, shape) -> np.ndarray:
    return np.random.RandomState(100 + rank).standard_normal(shape).astype(np.float32)


def check_collectives(group: Group, rank: int) -> None:
    """Values and gradients against numpy; a member's loss is the sum of its output times a weight that only it has."""
    inputs = [member_input(member) for member in group.ranks]

    def gathered(axis):
        return np.concatenate(inputs, axis)

    def exchanged(arrays, index, split, join):
        return np.concatenate([np.array_split(array, group.size, split)[index] for array in arrays], join)

    for axis in (0, 1):
        collective, expected = AllGather(group, axis), gathered(axis)
        value, gradient = value_and_gradient(collective, rank)
        assert (value == expected).all()
        total = sum(weight_of(member, expected.shape) for member in group.ranks)
        own = np.array_split(total, group.size, axis)[group.index]
        assert np.allclose(gradient, own, atol=1e-5)
        value, gradient = value_and_gradient(ReduceScatter(group, axis + 1), rank)
        assert np.allclose(value, np.array_split(sum(inputs), group.size, axis + 1)[group.index], atol=1e-5)
        weights = [weight_of(member, value.shape) for member in group.ranks]
        assert (gradient == np.concatenate(weights, axis + 1)).all()
    total = sum(weight_of(member, inputs[0].shape) for member in group.ranks)
    value, gradient = value_and_gradient(AllReduce(group), rank)
    assert np.allclose(value, sum(inputs), atol=1e-5) and np.allclose(gradient, total, atol=1e-5)
    value, gradient = value_and_gradient(Broadcast(group), rank)
    assert (value == inputs[0]).all() and np.allclose(gradient, total if group.is_first else 0, atol=1e-5)
    gathers = [True] * (getattr(group, "all_to_all", None) == "gather")
    for split, join in ((2, 1), (1, 2)):
        value, gradient = value_and_gradient(AllToAll(group, split, join, *gathers), rank)
        expected = exchanged(inputs, group.index, split, join)
        assert (value == expected).all()
        weights = [weight_of(member, expected.shape) for member in group.ranks]
        assert np.allclose(gradient, exchanged(weights, group.index, join, split), atol=1e-5)


class Loss(nn.Cell):
    """The sum of a collective's output times a weight, and the output."""

    def __init__(self, collective: nn.Cell, rank: int):
        super().__init__()
        self.collective, self.rank = collective, rank

    def construct(self, x: Tensor) -> tuple[Tensor, Tensor]:
        value = self.collective(x)
        return (value * Tensor(weight_of(self.rank, value.shape))).sum(), value


def value_and_gradient(collective: nn.Cell, rank: int):
    (_, value), gradient = ms.value_and_grad(Loss(collective, rank), has_aux=True)(Tensor(member_input(rank)))
    return value.asnumpy(), gradient.asnumpy()


class SquareLoss(nn.Cell):
    def __init__(self, model: nn.Cell):
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, *inputs: Tensor) -> Tensor:
        return self.model(*inputs).astype(ms.float32).square().mean()


def flat_gradient(model: nn.Cell, *inputs: Tensor) -> Tensor:
    """Of a loss, with respect to all parameters: (N,) float32."""
    gradients = ms.grad(SquareLoss(model), None, model.trainable_params())(*inputs)
    return ops.cat([gradient.reshape(-1).astype(ms.float32) for gradient in gradients])


def check_transformer(
    model: type[PretrainedModel], config: dict, group: Group, world: World, dtype, modes: Sequence[int]
) -> None:
    """The transformer with sequence parallelism equals the one without, and so do the mean gradients of a group."""
    ms.set_seed(5)
    whole, split = (model(**config).cast(dtype).set_train(False) for _ in range(2))
    split.load_torch_state(whole.torch_state())
    split.parallelize(UlyssesSequenceParallel(group))
    most = 1e-5 if dtype == ms.float32 else 1e-2
    random = np.random.RandomState(1)
    timestep = Tensor([500.0, 30.0])
    for frames, size in ((1, 8), (3, 10)):  # 25 tokens a frame do not divide
        latents = Tensor(random.standard_normal((2, config["in_channels"], frames, size, size)).astype(np.float32))
        text = Tensor(random.standard_normal((2, 1, 6, 32)).astype(np.float32))
        inputs = latents, timestep, text
        output, gradient = whole(*inputs).float().asnumpy(), flat_gradient(whole, *inputs).asnumpy()
        for mode in modes if frames > 1 else modes[:1]:  # compiling a graph takes long
            ms.set_context(mode=mode)
            difference = relative_difference(split(*inputs).float().asnumpy(), output)
            assert difference < most, (mode, difference)
            mean = world.all_reduce(flat_gradient(split, *inputs)).asnumpy() / world.size
            difference = relative_difference(mean, gradient)
            assert difference < 10 * most, (mode, difference)
        ms.set_context(mode=ms.PYNATIVE_MODE)


def check_streaming(group: Group, rank: int, folder: Path) -> None:
    """Ranks that read the blocks from the file compute what one rank with all blocks in memory does."""
    ms.set_seed(5)
    path = folder / f"rank{rank}"
    OpenSoraT2V_v1_3(**DIT).save_pretrained(path)
    inputs = (
        Tensor(np.random.RandomState(1).standard_normal((1, 8, 3, 10, 10)).astype(np.float32)),
        Tensor([500.0]),
        Tensor(np.random.RandomState(2).standard_normal((1, 1, 6, 32)).astype(np.float32)),
    )
    whole = OpenSoraT2V_v1_3.from_pretrained(path, weights="q8_0").set_train(False)
    split = OpenSoraT2V_v1_3.from_pretrained(path, weights="q8_0", streamed=True).set_train(False)
    split.parallelize(UlyssesSequenceParallel(group))
    assert split.is_streamed
    for _ in range(2):
        difference = relative_difference(split(*inputs).asnumpy(), whole(*inputs).asnumpy())
        assert difference < 1e-5, difference


def check_guidance(groups: VideoGroups, dtype) -> None:
    """Rows of guidance in different processes give the video of one process, with the same calls with step caching."""
    ms.set_seed(5)
    model = OpenSoraT2V_v1_3(**DIT).cast(dtype).set_train(False)
    random = np.random.RandomState(1)
    latents = Tensor(random.standard_normal((1, 8, 2, 8, 8)).astype(np.float32))
    text = TextEmbedding(random.standard_normal((2, 6, 32)).astype(np.float32), np.ones((2, 6), np.int32))
    for cache in (None, CacheSettings("easy", 1.0), CacheSettings("first_block", 0.2)):
        alone, together = (
            denoise(
                model,
                get_scheduler("DDIM", prediction_type="v_prediction"),
                text,
                latents,
                8,
                4.0,
                None,
                progress=False,
                settings=DenoiseSettings(cache, (0.2, 1.0), some, compiles=False),
            )
            for some in (None, groups)
        )
        difference = relative_difference(together.latents.asnumpy(), alone.latents.asnumpy())
        assert difference < (1e-5 if dtype == ms.float32 else 2e-2), (cache, difference)
        assert together.model_calls == alone.model_calls, cache


def check_decoding(group: Group) -> None:
    """Chunks of a clip that are decoded in parallel equal those of one process."""
    eight_fold = dict(
        l1_dowmsample_block="Spatial2xTime2x3DDownsample",
        l1_downsample_wavelet="HaarWaveletTransform3D",
        l1_upsample_block="Spatial2xTime2x3DUpsample",
        l1_upsample_wavelet="InverseHaarWaveletTransform3D",
    )
    groups = dict(
        norm_type="groupnorm", base_channels=32, encoder_energy_flow_hidden_size=32, decoder_energy_flow_hidden_size=32
    )
    for change in ({}, groups, eight_fold):
        ms.set_seed(6)
        alone = WFVAEModel(**{**VAE, **change}).set_train(False)
        together = WFVAEModel(**{**VAE, **change}).set_train(False)
        together.load_torch_state(alone.torch_state())
        together.share_decoding(ContextParallelStream(group))
        for frames in (1, 4, 9):
            latents = Tensor(np.random.RandomState(frames).standard_normal((1, 8, frames, 2, 2)).astype(np.float32))
            pieces, expected = list(together.decode_chunks(latents)), list(alone.decode_chunks(latents))
            assert [piece.shape for piece in pieces] == [piece.shape for piece in expected]
            difference = relative_difference(ops.cat(pieces, 2).asnumpy(), ops.cat(expected, 2).asnumpy())
            assert difference < 1e-5, (change, frames, difference)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sp_size", type=int, required=True)
    parser.add_argument("--also_in_graph_mode", action="store_true", help="the collectives and the transformer")
    parser.add_argument("--not_decoding", action="store_true", help="the collectives and the transformer alone")
    device.add_arguments(parser)
    args = parser.parse_args()
    dev = device.setup(args)
    group = sequence_group(dev, args.sp_size, heads=4)
    modes = (ms.PYNATIVE_MODE, ms.GRAPH_MODE) if args.also_in_graph_mode else (ms.PYNATIVE_MODE,)
    for mode in modes:
        ms.set_context(mode=mode)
        check_collectives(group, dev.rank)
    ms.set_context(mode=ms.PYNATIVE_MODE)
    world = World(dev.rank, dev.world_size)
    check_transformer(OpenSoraT2V_v1_3, THREE_LAYERS, group, world, dev.dtype, modes)
    check_transformer(LatteT2V, LATTE, group, world, dev.dtype, modes[:1])
    if dev.world_size == 2:
        check_guidance(video_groups(dev, 1, 2, heads=4), dev.dtype)
    if not args.not_decoding:
        check_decoding(group)
        with TemporaryDirectory() as folder:
            check_streaming(group, dev.rank, Path(folder))
    print("CHECKED", dev.rank)


if __name__ == "__main__":
    run_main(main)
