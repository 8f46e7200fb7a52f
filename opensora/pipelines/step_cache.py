"""Step caching: in steps where the transformer's result would hardly change, an earlier one is used.

    easy         judged before the transformer is called, from how its predictions changed so far. A step without a call
                 uses the sample x_0 that the last call predicted (after EasyCache, Zhou et al. 2025, "Less is Enough:
                 Training-Free Video Diffusion Acceleration via Runtime-Adaptive Caching"; that paper, on rectified
                 flow, uses the difference between the last output and its input instead).
    first_block  judged from what block 0 adds to the tokens, compared with the last call. A step without a call runs
                 block 0 and then adds what the other blocks added in the last call (First-Block-Cache).

The first tenth of the steps and the last step always call the transformer.
"""

from __future__ import annotations

from typing import Any, Callable, NamedTuple, Optional, Protocol

from mindspore import Tensor, nn, ops

from opensora.config.acceleration import CacheSettings
from opensora.models.common.rows import repeat_rows
from opensora.parallel.agreement import Agreement
from opensora.pipelines.compiled import Compiled, compiled
from opensora.schedulers.parameterization import Levels

WARM_UP = 0.1  # of the steps


class CallCounter(Protocol):
    """What calls the transformer."""

    calls: int


def with_cache(
    cache: Optional[CacheSettings],
    transformer: Any,
    is_compiled: bool,
    make_prediction: Callable[[Any], Any],
    levels: Levels,
    agreement: Agreement,
) -> tuple[Any, CallCounter]:
    """A prediction for the sampler's steps with the given step caching, and the counter of the transformer's calls.

    Args:
        is_compiled: compile the transformer.
        make_prediction: makes the prediction (`Prediction`) from the transformer, or from what replaces it.
    """
    if cache is not None and cache.method == "first_block":
        stages = compiled_stages(transformer) if is_compiled else Stages.of(transformer)
        model = FirstBlockCache(stages, len(levels.points), cache.threshold, agreement)
        return make_prediction(model), model
    prediction = make_prediction(compiled(transformer) if is_compiled else transformer)
    if cache is not None:
        prediction = EasyCache(prediction, levels, cache.threshold, agreement)
    return prediction, prediction


def calls_note(calls: float, steps: int) -> str:
    """How often the transformer was called for a video, as runs report it."""
    return f"calls of the transformer for a video: {calls:g}, without a cache {steps}"


class StepPolicy:
    """Which steps call the transformer, whatever the threshold: the first ones and the last one of n."""

    def __init__(self, steps: int):
        self._first, self._last = max(2, round(WARM_UP * steps)), steps - 1

    def must_call(self, step: int) -> bool:
        return step < self._first or step >= self._last


class Prediction(Protocol):
    """Calls the transformer for the sampler's n steps."""

    def __call__(self, x: Tensor, step: int, *conditions: Any) -> Tensor:
        """The output for the model's input x at a step, float32."""

    def context(self, step: int, *conditions: Any) -> Any:
        """What the output depends on besides x and the noise level; only outputs of an equal context are used."""


class EasyCache:
    """Predictions of which some follow from earlier ones. It is called as what it wraps, once for each step in order.

    With calls at steps i < j, the rate k = |x_0(j) - x_0(i)| / |movement from i to j| tells how much the predicted x_0
    changes as the model's input moves. Until the next call, k |movement| / |x_0(j)| adds up; the transformer is called
    when the sum reaches the threshold. |.| is the mean over all elements.

    Movement is that of the deterministic step from the last prediction (Song et al. 2020, DDIM, eq. 12 with eta = 0):
    samplers that add noise move the input by it, too, which does not change what the model can see of x_0.
    """

    def __init__(self, predict: Prediction, levels: Levels, threshold: float, agreement: Agreement):
        self._predict, self._levels, self._threshold, self._agreement = predict, levels, threshold, agreement
        self._policy = StepPolicy(len(levels.points))
        self._last_step: Optional[tuple[Tensor, Tensor, int]] = None  # input, output, step
        self._context: Any = None
        self._x0: Optional[Tensor] = None  # of the last call
        self._others: Optional[Tensor] = None  # the channels of its output that predict something else
        self._rate: Optional[float] = None
        self._moved = 0.0  # since the last call
        self.calls = 0

    def __call__(self, x: Tensor, step: int, *conditions: Any) -> Tensor:
        self._moved += self._movement(step)
        context = self._predict.context(step, *conditions)
        calls = self._agreement.video_calls(
            self._policy.must_call(step)
            or context != self._context
            or self._rate is None
            or self._rate * self._moved >= self._threshold
        )
        if self._agreement.run_calls(calls):
            output = self._predict(x, step, *conditions)
        if calls:
            self._remember(output, x, step, context)
            self.calls += 1
        else:
            output = self._reused(x, step)
        self._last_step = x, output[:, : x.shape[1]], step
        return output

    def _movement(self, step: int) -> float:
        """How far the deterministic step from the last one moves the model's input."""
        if self._last_step is None:
            return 0.0
        x, output, before = self._last_step
        return mean_absolute(self._levels.moved(output, x, before, step) - x)

    def _remember(self, output: Tensor, x: Tensor, step: int, context: Any) -> None:
        channels = x.shape[1]
        x0 = self._levels.x0(output[:, :channels], x, step)
        if self._x0 is not None and self._moved > 0:
            self._rate = mean_absolute(x0 - self._x0) / (self._moved * mean_absolute(x0))
        self._x0, self._context, self._moved = x0, context, 0.0
        self._others = output[:, channels:] if output.shape[1] > channels else None

    def _reused(self, x: Tensor, step: int) -> Tensor:
        output = self._levels.output(self._x0, x, step)
        return output if self._others is None else ops.cat((output, self._others), 1)


class FirstBlockCache:
    """The transformer with step caching. It is called as the transformer, once for each of n steps in order.

    With b what block 0 adds to the tokens, a step uses the last call if |b - b_last| / |b_last| is at most the
    threshold. |.| is the mean over all elements; the processes of sequence parallelism have some tokens each.
    """

    def __init__(self, stages: Stages, steps: int, threshold: float, agreement: Agreement):
        self._first, self._others, self._head = stages
        self._threshold, self._agreement, self._policy = threshold, agreement, StepPolicy(steps)
        self._step = 0
        self._added_by_first: Optional[Tensor] = None  # in the last call
        self._added_by_others: Optional[Tensor] = None
        self.calls = 0

    def __call__(self, *inputs: Any) -> Tensor:
        added, x = self._first(*inputs)
        calls = self._agreement.video_calls(self._policy.must_call(self._step) or self._has_changed(added))
        last = self._others(x, *inputs) if self._agreement.run_calls(calls) else None
        if calls:
            self._added_by_first, self._added_by_others = added, last - x
            self.calls += 1
        else:
            last = x + self._added_by_others
        self._step += 1
        return self._head(last, *inputs)

    def _has_changed(self, added: Tensor) -> bool:
        before = self._added_by_first
        if before is None or before.shape != added.shape:  # guidance has begun or ended
            return True
        change, size = self._agreement.total([mean_absolute(added - before), mean_absolute(before)])
        return not change <= self._threshold * size


class FirstBlock(nn.Cell):
    """What block 0 adds to the tokens, and the tokens after it."""

    def __init__(self, transformer: Any):
        super().__init__(auto_prefix=False)  # the transformer's parameters keep their names
        self.transformer = transformer

    def construct(self, *inputs: Any) -> tuple:
        x, prepared = self.transformer.prepare(*inputs)
        after = self.transformer.run_blocks(x, 0, 1, prepared)
        return after - repeat_rows(x, after.shape[0]), after


class OtherBlocks(nn.Cell):
    """The tokens after the last block, from those after block 0."""

    def __init__(self, transformer: Any):
        super().__init__(auto_prefix=False)
        self.transformer = transformer
        self.end = len(transformer.ordered_blocks())

    def construct(self, x: Tensor, *inputs: Any) -> Tensor:
        _, prepared = self.transformer.prepare(*inputs)
        return self.transformer.run_blocks(x, 1, self.end, prepared)


class Head(nn.Cell):
    """The transformer's output, from the tokens after the last block."""

    def __init__(self, transformer: Any):
        super().__init__(auto_prefix=False)
        self.transformer = transformer

    def construct(self, x: Tensor, *inputs: Any) -> Tensor:
        _, prepared = self.transformer.prepare(*inputs)
        return self.transformer.head(x, prepared)


class Stages(NamedTuple):
    """The transformer in three parts: `FirstBlock`, `OtherBlocks` and `Head`, or these compiled."""

    first: Callable
    others: Callable
    head: Callable

    @classmethod
    def of(cls, transformer: Any) -> Stages:
        return cls(FirstBlock(transformer), OtherBlocks(transformer), Head(transformer))


def compiled_stages(transformer: Any) -> Stages:
    """The stages compiled, once for all runs of the transformer."""
    graphs = transformer.compiled_graphs
    if "stages" not in graphs:
        names = "block 0 of the transformer", "the other blocks", "the transformer's head"
        graphs["stages"] = Stages(*map(Compiled, Stages.of(transformer), names))
    return graphs["stages"]


def mean_absolute(x: Tensor) -> float:
    """The mean of |x|."""
    return float(x.abs().mean().asnumpy())
