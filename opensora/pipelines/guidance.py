"""The transformer's predictions with classifier-free guidance, and what they need computed once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Callable, NamedTuple, Optional

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from opensora.config.acceleration import WHOLE_RANGE
from opensora.models.common.rows import repeat_rows
from opensora.ops.layout import pad_end
from opensora.parallel.collectives import AllGather
from opensora.parallel.groups import Group
from opensora.pipelines.text import TextEmbedding
from opensora.schedulers.iddpm.sampler import combine
from opensora.schedulers.schedule import TRAIN_TIMESTEPS


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance (Ho & Salimans 2022, "Classifier-Free Diffusion Guidance", eq. 6).

    Attributes:
        scale: above 1, predictions are negative + scale (positive - negative).
        interval: the noise levels timestep / 1000 with guidance; at others the prediction is the positive one
            (Kynkäänniemi et al. 2024, "Applying Guidance in a Limited Interval Improves Sample and Distribution
            Quality in Diffusion Models", section 3).
        group: two processes that compute one row each and exchange them; None: this process computes both.
    """

    scale: float
    interval: tuple[float, float] = WHOLE_RANGE
    group: Optional[Group] = None

    @property
    def enabled(self) -> bool:
        return self.scale > 1

    def applies(self, timestep: float) -> bool:
        """Whether there is guidance at a timestep."""
        low, high = self.interval
        return self.enabled and low <= timestep / TRAIN_TIMESTEPS <= high

    def combine(self, negative: Tensor, positive: Tensor) -> Tensor:
        """The guided prediction."""
        return negative + self.scale * (positive - negative)


class NegativeStates:
    """The text states of the negative prompt, computed once for all videos of a run."""

    def __init__(self) -> None:
        self._text: Optional[TextEmbedding] = None
        self._states: tuple = ()

    def of(self, transformer: Any, text: TextEmbedding) -> tuple:
        """The text states of a negative prompt; those of the last call if that had the same prompt."""
        known = self._text
        if known is None or not np.array_equal(known.mask, text.mask) or not np.array_equal(known.states, text.states):
            self._text, self._states = text, text_states(transformer, text)
        return self._states


class GuidedPrediction:
    """Predictions of Open-Sora-Plan's transformers for one batch of videos: `prediction(x, step)`.

    What is the same at all steps is computed here: text states, the modulations of all timesteps, the condition.

    Args:
        transformer: the model.
        predict: called as the transformer: the model itself, or its `FirstBlockCache`.
        text: with guidance the rows of the negative prompts, then those of the prompts; without, the prompts' only.
        timesteps: those of the steps, (n,).
        condition: (B, C', T, H, W), the conditioning channels of an inpaint model.
        negative_states: of the run.
    """

    def __init__(
        self,
        transformer: Any,
        predict: Callable[..., Tensor],
        text: TextEmbedding,
        timesteps: np.ndarray,
        guidance: Guidance,
        condition: Optional[Tensor],
        negative_states: NegativeStates,
    ):
        self.predict, self.timesteps, self.guidance = predict, timesteps, guidance
        self.condition = None if condition is None else transformer.condition_states(condition)
        self.modulation, self.embedded = transformer.adaln_single(Tensor(timesteps.astype(np.float32)))
        self.calls = 0

        *negative, positive = [rows.trimmed() for rows in text.split(2 if guidance.enabled else 1)]
        states_of_positive = cache(lambda: text_states(transformer, positive))
        self.texts = {}  # inputs of steps with and without guidance, as far as there are such steps
        for guided in set(map(self.context, range(len(timesteps)))):
            rows, states = [], []
            if guided and (guidance.group is None or guidance.group.is_first):
                rows, states = [*negative], [negative_states.of(transformer, negative[0])]
            if not rows or guidance.group is None:
                rows, states = [*rows, positive], [*states, states_of_positive()]
            self.texts[guided] = TextInput.join(rows, states)
        if guidance.group is not None:
            self.gather = AllGather(guidance.group, 0)

    def context(self, step: int) -> bool:
        """Whether there is guidance at a step."""
        return self.guidance.applies(float(self.timesteps[step]))

    def __call__(self, x: Tensor, step: int) -> Tensor:
        """The prediction (B, C, T, H, W), float32, for the latents x (B, C, T, H, W) at timesteps[step]."""
        guided = self.context(step)
        text = self.texts[guided]
        modulation = ms.mutable((self.modulation[step : step + 1], self.embedded[step : step + 1]))
        output = self.predict(x, None, None, None, text.mask, text.states, modulation, self.condition)
        if output.shape[1] > x.shape[1]:  # followed by a predicted variance, which samplers do not use
            output = output[:, : x.shape[1]]
        output = output.astype(ms.float32)
        self.calls += 1
        if not guided:
            return output
        if self.guidance.group is not None:
            output = self.gather(output)
        return self.guidance.combine(*ops.chunk(output, 2, 0))


class STDiTPrediction:
    """Predictions of Open-Sora's transformers for n clips of one size: `prediction(x, call, x_mask)`; see
    `GuidedPrediction`.

    Args:
        text: y, texts or classes (n, ...), and for padded texts their mask (n, L).
        size: numbers that some models are conditioned on, each (n,).
        sampler: of `opensora.schedulers.iddpm`.
    """

    def __init__(
        self,
        transformer: Any,
        predict: Callable[..., Tensor],
        text: Mapping[str, Tensor],
        size: Mapping[str, Tensor],
        sampler: Any,
    ):
        self.predict, self.names, self.sampler = predict, transformer.conditions, sampler
        self.clips = text["y"].shape[0]
        null = transformer.text_states(transformer.null_text(1).astype(text["y"].dtype))
        pairs = zip(transformer.text_states(text["y"]), null)
        text_states = tuple(
            tuple(ops.cat((of_text, repeat_rows(of_null, self.clips)), 0) for of_text, of_null in zip(*pair))
            for pair in pairs
        )
        size = {name: size[name] for name in self.names if name in size}
        self.inputs = {"mask": text.get("mask"), **size, "text_states": ms.mutable(text_states)}
        timesteps = np.repeat(np.array(sampler.call_timesteps, np.float32), self.clips)
        self.modulations = transformer.modulations(Tensor(timesteps), **size)
        self.modulation_of_zero = ms.mutable(transformer.modulations(Tensor(np.zeros(self.clips, np.float32)), **size))
        self.calls = 0

    def context(self, call: int, x_mask: Optional[Tensor]) -> bytes:
        """Which frames are conditioning frames."""
        return b"" if x_mask is None else x_mask.asnumpy().tobytes()

    def __call__(self, x: Tensor, call: int, x_mask: Optional[Tensor]) -> Tensor:
        """The model's output (n, C', T, h, w), float32, with guidance, for the latents x (n, C, T, h, w)."""
        rows = slice(call * self.clips, (call + 1) * self.clips)
        inputs = {**self.inputs, "modulation": ms.mutable(tuple(table[rows] for table in self.modulations))}
        if x_mask is not None:
            inputs.update(x_mask=x_mask, modulation_of_zero=self.modulation_of_zero)
        output = self.predict(x, None, *(inputs.get(name) for name in self.names))
        self.calls += 1
        prompt, null = ops.chunk(output.astype(ms.float32), 2, 0)
        return combine(prompt, null, self.sampler.cfg_scale, self.sampler.cfg_channel or x.shape[1])


class TextInput(NamedTuple):
    """The transformer's inputs for some texts: their states, and the mask of their padding."""

    states: tuple
    mask: Optional[Tensor]

    @classmethod
    def join(cls, texts: Sequence[TextEmbedding], states: Sequence[tuple]) -> TextInput:
        """The rows of several texts, from the text states of each, padded to the longest."""
        length = max(text.mask.shape[1] for text in texts)

        def rows(tensors: Sequence[Tensor]) -> Tensor:
            padded = [pad_end(x, 1, length - x.shape[1]) if x.shape[1] < length else x for x in tensors]
            return padded[0] if len(padded) == 1 else ops.cat(padded, 0)

        joined = tuple(tuple(rows(tensors) for tensors in zip(*blocks)) for blocks in zip(*states))
        # Mutable: an input in graph mode, not a constant.
        return cls(ms.mutable(joined), TextEmbedding.concatenate(texts).attention_mask())


def text_states(transformer: Any, text: TextEmbedding) -> tuple:
    """The keys and values of the transformer's cross-attention for an embedded text."""
    return transformer.text_states(Tensor(text.states).expand_dims(1))
