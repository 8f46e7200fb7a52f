"""Models that occupy device memory only while they are needed."""

from __future__ import annotations

import gc
from typing import Any, Callable, Optional

import mindspore as ms
from mindspore import nn

from opensora.ops.cpu.runtime import return_freed_memory


class LazyModel:
    """A model that is loaded at the first `get` and can be released.

    Attributes:
        after_load: called with the model each time it was loaded.
    """

    def __init__(self, load: Callable[[], nn.Cell]):
        self._load = load
        self._model: Optional[nn.Cell] = None
        self.after_load: Callable[[nn.Cell], None] = lambda model: None

    def get(self) -> Any:
        """The model, in inference mode."""
        if self._model is None:
            self._model = self._load().set_train(False)
            self.after_load(self._model)
        return self._model

    def release(self) -> None:
        """Frees the model's memory; the next `get` loads it again."""
        self._model = None
        gc.collect()
        ms.runtime.empty_cache()
        return_freed_memory()
