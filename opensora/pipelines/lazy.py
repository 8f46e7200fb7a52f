"""The models of a pipeline, on the device only while they are needed."""

from __future__ import annotations

import gc
from typing import Callable

import mindspore as ms
from mindspore import nn


class LazyModel:
    """A model that is loaded when first asked for and can be let go."""

    def __init__(self, load: Callable[[], nn.Cell]):
        self._load = load
        self._model = None

    def get(self) -> nn.Cell:
        if self._model is None:
            self._model = self._load().set_train(False)
        return self._model

    def release(self) -> None:
        """Frees its memory; the next `get` loads it again."""
        self._model = None
        gc.collect()
        ms.runtime.empty_cache()
