"""How a sampling run holds its models within a budget of memory: loaded, or streamed from their files.

The weights of every model are counted exactly. Its other memory is estimated (`stages`, `footprint`). A run has the
first of these plans that fits:

1. all models stay loaded;
2. the text encoder is streamed: all prompts pass it once, block by block;
3. also, one model at a time is loaded;
4. also, the transformer is streamed: every step reads its blocks, while the preceding block computes.

All of them give the same result bit for bit. Where reading the transformer takes longer than computing with it, its
weights are held in 8 bits instead, if that fits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Optional

from opensora.checkpoint.lazy_tensor import LazyTensor
from opensora.cost_model.compute import flops
from opensora.cost_model.footprint import memory
from opensora.cost_model.run import TEMPORAL_STRIDE, Run
from opensora.cost_model.stages import Texts, autoencoder_buffers, text_encoder_buffers
from opensora.models.pretrained import PretrainedModel
from opensora.models.stored_weights import BYTES, STORED, WeightLoader
from opensora.pipelines.sizes import SIZE_STEP

NAMES = {"text_encoder": "text encoder", "transformer": "transformer", "vae": "autoencoder"}
STREAMED_BLOCKS = 2  # in memory at a time
# Freed memory that the process keeps on a CPU (`ops.cpu.runtime`), measured; streaming returns it after every block.
KEPT_BY_LOADED, KEPT_BY_STREAMED = 600e6, 300e6
KEPT_SHARE = 0.5  # of the memory that small models use
LOADED_LATER = 70e6  # code of libraries and stacks of threads that a process gets after the plan is made, measured
MARGIN = 1.05  # of a budget over the estimate, which a few percent may be missing from
EFFICIENCY = 0.9  # rate of a step of the transformer, relative to that of a matrix product; measured: 0.9 to 0.97
LONG_READ = 2.0  # seconds; shorter reading of the transformer does not justify 8 bits


@dataclass(frozen=True)
class ModelFiles:
    """A model without weights, its tensors by name, the dtype it computes in, and the wanted format of its weights."""

    model: PretrainedModel
    tensors: Mapping[str, LazyTensor]
    dtype: Any
    weights: Optional[str] = None

    def hold(self, name: str, streamed: bool, buffers: float, by_row: bool) -> HeldModel:
        """Counts the bytes of the weights.

        Args:
            streamed: two blocks are in memory at a time.
            buffers: bytes of all else.
            by_row: embedding tables are read by row, from the file.
        """
        weights = self.weights or "as_stored"
        loader = WeightLoader(self.model, self.dtype, self.model.float32_parameters(), weights)
        always, blocks, types = 0.0, dict[str, float](), dict[str, float]()
        for parameter_name, parameter in loader.parameters.items():
            if by_row and parameter_name in self.model.tables:
                continue
            kind = loader.kind(parameter_name, self.tensors[parameter_name])
            size = parameter.size * BYTES[kind]
            types[kind] = types.get(kind, 0) + size
            block = self.model.block_of(parameter_name) if streamed else None
            if block is None:
                always += size
            else:
                blocks[block] = blocks.get(block, 0) + size
        loaded = always + sum(sorted(blocks.values())[-STREAMED_BLOCKS:])
        most = max(types, key=lambda kind: types[kind])
        return HeldModel(name, weights, most, streamed, loaded, sum(types.values()), buffers)


class HeldModel(NamedTuple):
    """How a run holds a model.

    Attributes:
        weights: one of `opensora.config.memory.WEIGHTS`.
        type: of most of its weights, as in files.
        loaded: bytes of weights in memory at a time, of `total`.
        buffers: bytes of all else while it computes.
    """

    name: str
    weights: str
    type: str
    streamed: bool
    loaded: float
    total: float
    buffers: float

    def __str__(self) -> str:
        size = f"{self.total / 1e9:.2f} GB"
        held = f"streamed, {self.loaded / 1e9:.2f} of {size} at a time" if self.streamed else f"loaded, {size}"
        return f"{NAMES[self.name]}: {self.type} weights {held}; buffers {self.buffers / 1e9:.2f} GB"


@dataclass(frozen=True)
class MemoryPlan:
    """The plan of a run.

    Attributes:
        models: in the order of their use.
        one_at_a_time: a model is released before the next one is loaded.
        process: bytes of the process without models.
        int8_transformer: the plan has chosen 8 bits for the transformer.
        step_seconds: expected time of a step; None: unknown.
    """

    models: Mapping[str, HeldModel]
    one_at_a_time: bool
    process: float
    int8_transformer: bool = False
    step_seconds: Optional[float] = None

    @property
    def weights(self) -> dict[str, str]:
        """The formats of the weights by model, for `from_pretrained`."""
        return {name: model.weights for name, model in self.models.items()}

    @property
    def largest(self) -> HeldModel:
        """The model that the process has its peak with."""
        return max(self.models.values(), key=lambda model: self._with(model))

    @property
    def peak(self) -> float:
        """Bytes of the whole process at most."""
        return self.process + self._with(self.largest)

    def fits(self, budget: float) -> bool:
        return MARGIN * self.peak <= budget

    def _with(self, current: HeldModel) -> float:
        """Bytes of models while one of them computes. A streamed one holds next to nothing at other times."""
        others = [model.loaded for model in self.models.values() if model is not current and not model.streamed]
        return current.loaded + current.buffers + (0 if self.one_at_a_time else sum(others))

    def with_seconds(self, seconds: Optional[float]) -> MemoryPlan:
        """The plan with an expected time of a step."""
        return replace(self, step_seconds=seconds)

    def lines(self) -> Iterator[str]:
        """The plan as text, a line each."""
        for model in self.models.values():
            yield f"memory: {model}"
        if self.int8_transformer:
            yield (
                "memory: the transformer is held in 8 bits, because reading it in every step would take longer than "
                "computing; --weights as_stored is exact"
            )
        order = "; one model at a time" if self.one_at_a_time else "; no model is released"
        if len(self.models) == 1:
            order = ""
        seconds = "" if self.step_seconds is None else f"; about {self.step_seconds:.3g} s per step"
        process = f"{self.process / 1e9:.2f} GB of it for the process"
        yield f"memory: planned peak {self.peak / 1e9:.2f} GB, {process}{order}{seconds}"


class Rates(NamedTuple):
    """Of a machine: floating-point operations and bytes read from the weights' disk per second."""

    product: float
    read: float


@dataclass(frozen=True)
class Planner:
    """Chooses the plan of a run.

    Args:
        files: by the names of `opensora.config.memory.MODELS`, the models that the run uses.
        process: bytes of the process without models.
        texts: what the text encoder embeds.
        may_stream: False in graph mode.
        one_at_a_time: never keep two models loaded.
        keeps_freed_memory: True on a CPU.
        decodes_in_chunks: False for autoencoders that decode the whole video at once.
        rates: of the machine; None: no estimate of time, and no choice of 8 bits.
        adapters: bytes of the transformer's LoRAs.
    """

    files: Mapping[str, ModelFiles]
    process: float
    texts: Texts
    may_stream: bool = True
    one_at_a_time: bool = False
    decodes_in_chunks: bool = True
    keeps_freed_memory: bool = True
    rates: Optional[Rates] = None
    adapters: float = 0.0

    def plan(self, run: Optional[Run], budget: float) -> MemoryPlan:
        """The first plan that fits the budget, or the last one. `run` is None for a text encoder alone."""
        for plan in self.plans(run):
            if plan.fits(budget):
                break
        seconds = None
        if self.rates is not None and run is not None and "transformer" in plan.models:
            transformer = plan.models["transformer"]
            compute = flops(run)["sum"] / (self.rates.product * EFFICIENCY)
            read = transformer.total / self.rates.read if transformer.streamed else 0.0
            if read > max(compute, LONG_READ) and self.files["transformer"].weights is None:
                in_8_bits = self._with_int8()
                shorter = [other for other in in_8_bits.plans(run) if not other.models["transformer"].streamed]
                fitting = [other for other in shorter if other.fits(budget)]
                if fitting:
                    return replace(fitting[0], int8_transformer=True, step_seconds=compute)
            seconds = max(read, compute)
        return plan.with_seconds(seconds)

    def refusal(self, run: Optional[Run], budget: float) -> str:
        """Why no plan of the run fits, and the largest size of its shape that does."""
        least = self._smallest(run)
        model = least.largest
        rows = f"a batch of {self.texts.rows} texts" if self.texts.rows > 1 else "a text"
        size = f"{run.num_frames}x{run.height}x{run.width}" if run else f"{rows} of {self.texts.length} tokens"
        fitting = next((smaller for smaller in _smaller(run) if self._smallest(smaller).fits(budget)), None)
        remedy = f"{fitting.num_frames}x{fitting.height}x{fitting.width} fits, or " if fitting else ""
        remedy += "" if self.may_stream else "use --mode 1, which can read blocks from the file, or "
        return (
            f"{size} needs {least.peak / 1e9:.2f} GB ({least.process / 1e9:.2f} GB for the process, "
            f"{model.loaded / 1e9:.2f} GB of weights and {model.buffers / 1e9:.2f} GB of buffers for the "
            f"{NAMES[model.name]}); {remedy}give --memory {rounded_up(MARGIN * least.peak)}"
        )

    def _smallest(self, run: Optional[Run]) -> MemoryPlan:
        return min(self.plans(run), key=lambda plan: plan.peak)

    def plans(self, run: Optional[Run]) -> Iterator[MemoryPlan]:
        """The plans in order of preference."""
        choices = [(False, False, False), (True, False, False), (True, False, True), (True, True, True)]
        if not self.may_stream:
            choices = [(False, False, False), (False, False, True)]
        for text_streamed, transformer_streamed, one_at_a_time in choices:
            streamed = {"text_encoder": text_streamed, "transformer": transformer_streamed, "vae": False}
            models = {
                name: self._hold(name, streamed[name], self._buffers(name, streamed[name], run)) for name in self.files
            }
            yield MemoryPlan(models, one_at_a_time or self.one_at_a_time, self.process)

    def _hold(self, name: str, streamed: bool, buffers: float) -> HeldModel:
        """The model with the freed memory that the process keeps: not more than the model takes."""
        model = self.files[name].hold(name, streamed, buffers, self.may_stream)
        most = KEPT_BY_LOADED if model.name == "transformer" and not model.streamed else KEPT_BY_STREAMED
        kept = min(most, KEPT_SHARE * (model.loaded + model.buffers)) if self.keeps_freed_memory else 0.0
        return model._replace(buffers=model.buffers + kept)

    def _buffers(self, name: str, streamed: bool, run: Optional[Run]) -> float:
        model: Any = self.files[name].model
        if name == "text_encoder":
            element = BYTES[STORED[self.files[name].dtype]]
            return sum(text_encoder_buffers(model, self.texts, element, streamed).values())
        assert run is not None  # all other models are for videos
        if name == "vae":
            return sum(autoencoder_buffers(model, run, self.decodes_in_chunks).values())
        transformer = memory(run)
        return transformer["sum"] - transformer["weights"] + self.adapters

    def _with_int8(self) -> Planner:
        transformer = replace(self.files["transformer"], weights="q8_0")
        return replace(self, files={**self.files, "transformer": transformer})


def rounded_up(size: float) -> str:
    """A size for `--memory`, a tenth of a GB larger than `size` at most."""
    return f"{int(size / 1e8 + 1) / 10:g}GB"


def _smaller(run: Optional[Run]) -> Iterator[Run]:
    """Runs of fewer frames, then of smaller frames of about the same shape, from large to small."""
    if run is None:
        return
    for frames in range(run.num_frames - TEMPORAL_STRIDE, 0, -TEMPORAL_STRIDE):
        yield replace(run, num_frames=frames)
    for height in range(run.height - SIZE_STEP, 0, -SIZE_STEP):
        width = max(round(run.width * height / run.height / SIZE_STEP), 1) * SIZE_STEP
        yield replace(run, num_frames=1, height=height, width=width)
