"""Bytes of the weights in each format (`--weights` of sample.py), and the error of the results: Markdown tables.

    python benchmarks/weight_formats.py [--table bytes transformer text_encoder demo score] [--layers N] [--count N]

The reference is the same model with float32 weights; all of them compute in float32. `transformer` and `text_encoder`
have the published widths, few layers, and random weights, without and with outlier channels. `demo` and `score`
measure the trained demo model. Rows `... but X` hold the layers X as bf16 and every other linear layer as int8.
"""

from __future__ import annotations

import argparse
import gc
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional

import mindspore as ms
import numpy as np
from mindspore import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a fresh clone

from benchmarks.cases import normal, text_mask  # noqa: E402
from benchmarks.run import markdown, use_cores  # noqa: E402
from opensora.checkpoint.lazy_tensor import ArrayTensor, ConvertedTensor, LazyTensor  # noqa: E402
from opensora.cli.full_size_release import TEXT_ENCODER, TRANSFORMER, Component, components  # noqa: E402
from opensora.config.command_line import CommandParser, run_main  # noqa: E402
from opensora.config.commands import DEMO_MODEL, DEMO_WORLD  # noqa: E402
from opensora.config.options import check_at_least_one  # noqa: E402
from opensora.demo.drawing import draw_clip  # noqa: E402
from opensora.demo.scenes import WORLDS  # noqa: E402
from opensora.demo.score import ASPECTS, MAX_TOKENS, accuracy, judge, make_videos, prompts  # noqa: E402
from opensora.metrics.psnr_ssim import psnr  # noqa: E402
from opensora.models import MT5EncoderModel, OpenSoraT2V_v1_3, WFVAEModel  # noqa: E402
from opensora.models.pretrained import PretrainedModel  # noqa: E402
from opensora.models.stored_weights import WeightLoader  # noqa: E402
from opensora.models.text_encoder.tokenizer import Tokenizer  # noqa: E402
from opensora.pipelines import OpenSoraPipeline  # noqa: E402
from opensora.pipelines.lazy import LazyModel  # noqa: E402
from opensora.schedulers import get_scheduler  # noqa: E402

TABLES = ("bytes", "transformer", "text_encoder", "demo", "score")
FORMATS = ("fp32", "bf16", "fp16", "q8_0")
TIMESTEPS = (901.0, 300.0)
LATENTS = (len(TIMESTEPS), 8, 2, 16, 16)
TEXT_TOKENS = 32
VOCABULARY = 1024  # of the random text encoder; the table is never int8
EMBEDDING_TABLE = "encoder.embed_tokens.weight"
SCORE_SEED, GUIDANCE_SCALE = 1234, 4.0  # as in the model card
OUTLIERS = 4  # input channels of each linear layer
OUTLIER_SCALE = (20.0, 50.0)

# Layers that a row of the tables keeps in 16 bits: components of their names. `first` and `last` are blocks.
TRANSFORMER_GROUPS = {
    "the first block": ("first",),
    "the last block": ("last",),
    "the first and last block": ("first", "last"),
    "caption_projection": ("caption_projection",),
    "proj_out": ("proj_out",),
    "caption_projection, proj_out": ("caption_projection", "proj_out"),
    "self-attention": ("attn1",),
    "cross-attention": ("attn2",),
    "feed-forward": ("ff",),
}
TEXT_GROUPS = {
    "the first block": ("first",),
    "the last block": ("last",),
    "the first and last block": ("first", "last"),
    "attention": ("SelfAttention",),
    "feed-forward": ("DenseReluDense",),
    "feed-forward, output": ("wo",),
}


@dataclass(frozen=True)
class Weights:
    """A model's float32 weights, from which it is made in any format.

    Attributes:
        model: the class.
        config: keys of its config.json.
        values: the numbers of a parameter by its name; the flag is whether it is the weight of a linear layer.
    """

    model: type[PretrainedModel]
    config: Mapping[str, Any]
    values: Callable[[str, bool], np.ndarray]

    def hold(self, weights: str, kept: Optional[Sequence[str]] = None) -> Held:
        """The model with all weights in one format.

        Args:
            weights: the format.
            kept: components of names: int8 for every layer, even those of `NOT_QUANTIZED`, but bf16 for these.
        """
        model = self.model.without_weights(**self.config).set_train(False)
        loaders = {chosen: WeightLoader(model, ms.float32, model.float32_parameters(), chosen) for chosen in FORMATS}
        last = len(dict(model.cells_and_names())[model.block_list]) - 1
        nbytes = {"int8": 0, "all": 0}
        for name in loaders[weights].parameters:
            components = name.removeprefix(f"{model.block_list}.").split(".")
            if name.startswith(model.block_list):
                components += [word for word, index in (("first", 0), ("last", last)) if components[0] == str(index)]
            loader = loaders["bf16" if set(kept or ()).intersection(components) else weights]
            is_linear = name in loader.layers and loader.layers[name].may_be_int8
            tensor: LazyTensor = ArrayTensor(self.values(name, is_linear))
            if is_linear and kept is not None and loader.weights == "q8_0":
                tensor = ConvertedTensor(tensor, "Q8_0", name)  # stored in 8 bits, and therefore not widened
            held = loader.read(name, tensor)
            loader.set(name, held)
            nbytes["all"] += held.nbytes
            nbytes["int8"] += held.values.nbytes if held.dtype == ms.int8 else 0
        return Held(model, nbytes["all"], nbytes["int8"])


class Held(NamedTuple):
    """A model that computes in float32, the bytes of its weights, and how many of them are int8."""

    model: PretrainedModel
    nbytes: int
    int8: int


def with_outliers(name: str, values: np.ndarray) -> np.ndarray:
    """Scales a few input channels of a linear layer's weight (out, in) by 20 to 50; the variance of its results stays.

    All layers of one input width have the same channels, like those that read the residual stream.
    """
    width = values.shape[1]
    scale = np.ones(width, np.float32)
    channels = np.random.default_rng(width).permutation(width)[:OUTLIERS]
    scale[channels] = np.random.default_rng(zlib.crc32(name.encode())).uniform(*OUTLIER_SCALE, channels.size)
    return values * (scale / np.sqrt(np.square(scale).mean()))


def random_weights(component: Component, seed: int, outliers: bool) -> Weights:
    published = {name: alias for alias, name in component.model.aliases.items()}
    tensors = component.tensors(seed)

    def values(name: str, is_linear: bool) -> np.ndarray:
        numbers = tensors[published.get(name, name)].numpy()
        return with_outliers(name, numbers) if outliers and is_linear else numbers

    return Weights(component.model, component.config, values)


def demo_weights(model: type[PretrainedModel], folder: str) -> Weights:
    trained = model.from_pretrained(DEMO_MODEL / folder)
    return Weights(model, trained.config.to_dict(), lambda name, _: np.concatenate(list(trained.values(name))))


def relative_rms(value: np.ndarray, expected: np.ndarray) -> float:
    """RMS of the difference, relative to the RMS of `expected`."""
    error = np.square(value.astype(np.float64) - expected).mean()
    return float(np.sqrt(error / np.square(expected, dtype=np.float64).mean()))


def errors(
    source: Weights, run: Callable[[PretrainedModel], np.ndarray], groups: Mapping[str, Sequence[str]]
) -> dict[str, tuple[int, float]]:
    """The bytes of the weights and the error of the results of `run`, for each format and group of layers."""
    expected = run(source.hold("fp32").model)
    gc.collect()
    rows: dict[str, tuple[str, Optional[Sequence[str]]]] = {weights: (weights, None) for weights in FORMATS[1:]}
    rows["q8_0, every layer"] = "q8_0", ()
    rows.update({f"... but {title}": ("q8_0", kept) for title, kept in groups.items()})
    found = {}
    for title, (weights, kept) in rows.items():
        held = source.hold(weights, kept)
        found[title] = (held.nbytes, relative_rms(run(held.model), expected))
        del held
        gc.collect()  # before the next model takes its memory
        print(f"{title}: {found[title][1]:.2e}", file=sys.stderr, flush=True)
    return found


def predict(model: PretrainedModel, latents: np.ndarray, states: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The transformer's predictions for noisy latents at `TIMESTEPS`."""
    time = Tensor(np.array(TIMESTEPS, np.float32))
    return model(Tensor(latents), time, Tensor(states[:, None]), None, Tensor(mask[:, None])).asnumpy()


def encode_text(model: PretrainedModel, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The states of the text encoder, zero for padding."""
    return model(Tensor(ids), Tensor(mask)).asnumpy() * mask[:, :, None]


def error_table(columns: Mapping[str, Mapping[str, tuple[int, float]]]) -> str:
    """Bytes, relative to bf16, and the error in each column."""
    first = next(iter(columns.values()))
    rows = [
        [title, f"{nbytes / first['bf16'][0]:.3f}", *(f"{column[title][1]:.2e}" for column in columns.values())]
        for title, (nbytes, _) in first.items()
    ]
    return markdown([["weights", "bytes / bf16", *columns], *rows])


def random_table(table: str, layers: int, seeds: int) -> str:
    """The errors of the transformer or the text encoder, the root mean square over `seeds` random models."""
    transformer, _, text_encoder = components(
        "fp32",
        {**TRANSFORMER, "num_layers": layers},
        text_encoder={**TEXT_ENCODER, "num_layers": layers, "vocab_size": VOCABULARY},
    )
    mask = text_mask(len(TIMESTEPS), TEXT_TOKENS)
    columns = {}
    for title, outliers in (("normal weights", False), ("with outlier channels", True)):
        found = []
        for seed in range(seeds):
            if table == "transformer":
                latents, states = normal(LATENTS, seed), normal((*mask.shape, TEXT_ENCODER["d_model"]), seed + 1)
                source, groups = random_weights(transformer, seed, outliers), TRANSFORMER_GROUPS
                found.append(errors(source, partial(predict, latents=latents, states=states, mask=mask), groups))
            else:
                ids = np.random.default_rng(seed).integers(VOCABULARY, size=mask.shape, dtype=np.int32)
                source = random_weights(text_encoder, seed, outliers)
                found.append(errors(source, partial(encode_text, ids=ids, mask=mask), TEXT_GROUPS))
        columns[title] = {
            row: (nbytes, float(np.sqrt(np.mean([np.square(each[row][1]) for each in found]))))
            for row, (nbytes, _) in found[0].items()
        }
    return error_table(columns)


def byte_table() -> str:
    """Bytes of the published models in memory, counted, without the embedding table, which is read by rows."""
    rows = [[weights] for weights in FORMATS]
    for component in components("fp32"):
        model = component.model.without_weights(**component.config)
        published = {name: alias for alias, name in model.aliases.items()}
        tensors = component.tensors(seed=0)
        for row in rows:
            loader = WeightLoader(model, ms.float32, model.float32_parameters(), row[0])
            total = 0
            for name in loader.parameters.keys() - {EMBEDDING_TABLE}:
                tensor = tensors[published.get(name, name)]
                total += ConvertedTensor(tensor, loader.kind(name, tensor)).nbytes
            row.append(f"{total / 1e9:.2f} GB")
    return markdown([["weights", "transformer", "autoencoder", "text encoder"], *rows])


def demo_table() -> str:
    """The errors of the demo model's transformer and text encoder: states and predictions for prompts of its domain."""
    scenes = prompts(len(TIMESTEPS), 0, WORLDS[DEMO_WORLD])
    ids, mask = Tokenizer(DEMO_MODEL / "text_encoder")([scene.caption() for scene in scenes], MAX_TOKENS)
    text_encoder = demo_weights(MT5EncoderModel, "text_encoder")
    states = encode_text(text_encoder.hold("fp32").model, ids, mask)
    videos = np.stack([draw_clip(scene, np.random.default_rng(0), WORLDS[DEMO_WORLD]) for scene in scenes]) / 127.5 - 1
    vae = WFVAEModel.from_pretrained(DEMO_MODEL / "vae").set_train(False)
    video = Tensor(videos.transpose(0, 4, 1, 2, 3).astype(np.float32))
    latents = vae.normalize(vae.encode(video).mode()).asnumpy()
    noise = np.array(TIMESTEPS, np.float32).reshape(-1, 1, 1, 1, 1) / 1000
    noisy = (1 - noise) * latents + noise * normal(latents.shape)
    transformer = demo_weights(OpenSoraT2V_v1_3, "transformer")
    tables = [
        errors(transformer, partial(predict, latents=noisy, states=states, mask=mask), TRANSFORMER_GROUPS),
        errors(text_encoder, partial(encode_text, ids=ids, mask=mask), TEXT_GROUPS),
    ]
    return "\n\n".join(error_table({title: table}) for title, table in zip(("prediction", "states"), tables))


class RecordingPipeline(OpenSoraPipeline):
    """Keeps the latents that it decodes."""

    def decode(self, latents: Tensor) -> Iterator[np.ndarray]:
        self.latents = [*getattr(self, "latents", []), latents.asnumpy()]
        yield from super().decode(latents)


def score_table(count: int, steps: int) -> str:
    """Latents, videos and score of the demo model with transformer and text encoder in each format."""
    sources = demo_weights(OpenSoraT2V_v1_3, "transformer"), demo_weights(MT5EncoderModel, "text_encoder")
    head = ["weights", "int8", "latents", "PSNR, mean", "PSNR, least", *ASPECTS]
    rows, scenes, reference = [], prompts(count, SCORE_SEED, WORLDS[DEMO_WORLD]), None
    for weights in FORMATS:
        transformer, text_encoder = [source.hold(weights) for source in sources]
        pipeline = RecordingPipeline(
            LazyModel(lambda: text_encoder.model),
            Tokenizer(DEMO_MODEL / "text_encoder"),
            LazyModel(lambda: transformer.model),
            LazyModel(lambda: WFVAEModel.from_pretrained(DEMO_MODEL / "vae")),
            get_scheduler("EulerAncestralDiscrete", prediction_type="v_prediction", rescale_betas_zero_snr=True),
            prompt_template="{}",
            negative_prompt="",
        )
        videos = np.stack(list(make_videos(pipeline, scenes, GUIDANCE_SCALE, steps, SCORE_SEED)))
        result = np.concatenate(pipeline.latents), videos.transpose(0, 1, 4, 2, 3) / 255
        reference = reference or result
        quality = psnr(reference[1], result[1]).mean(1)  # of videos
        scores = accuracy([judge(scene, video) for scene, video in zip(scenes, videos)])
        int8 = (transformer.int8 + text_encoder.int8) / (transformer.nbytes + text_encoder.nbytes)
        rows.append([weights, f"{int8:.0%}", f"{relative_rms(result[0], reference[0]):.2e}"])
        rows[-1] += [f"{quality.mean():.1f} dB", f"{quality.min():.1f} dB"]
        rows[-1] += [f"{scores[aspect]:.0%}" for aspect in ASPECTS]
        print(rows[-1], file=sys.stderr, flush=True)
    return markdown([head, *rows])


def parse_args() -> argparse.Namespace:
    parser = CommandParser(description=__doc__)
    parser.add_argument("--table", nargs="+", choices=TABLES, default=TABLES, help="tables to print")
    parser.add_argument("--layers", type=int, default=4, help="blocks of the random models")
    parser.add_argument("--seeds", type=int, default=3, help="random models of which the mean error is taken")
    parser.add_argument("--count", type=int, default=100, help="prompts of the score")
    parser.add_argument("--steps", type=int, default=50, help="steps of the sampler, for the score")
    parser.add_argument("--threads", type=int, default=2, help="cores to use")
    args = parser.parse_args()
    check_at_least_one(args, "layers", "seeds", "count", "steps")
    return args


def main() -> None:
    args = parse_args()
    use_cores(args.threads)
    for table in args.table:
        if table == "bytes":
            text = byte_table()
        elif table == "demo":
            text = demo_table()
        elif table == "score":
            text = score_table(args.count, args.steps)
        else:
            text = random_table(table, args.layers, args.seeds)
        print(f"{table}:\n\n{text}\n", flush=True)


if __name__ == "__main__":
    run_main(main)
