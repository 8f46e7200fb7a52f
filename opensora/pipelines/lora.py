"""LoRAs of a pipeline's transformer: loading, scaling and unloading them by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional, Union

from opensora.checkpoint.lora.files import read_lora
from opensora.errors import UserError
from opensora.models.lora import LoadedLoRA, LoRAs, linear_shapes
from opensora.utils.numbers import finite_number


class LoRAMixin:
    """The methods of pipelines that take LoRAs. The updates of all LoRAs are added up."""

    loras: LoRAs

    def get_transformer(self) -> Any:
        """The transformer, loaded."""
        raise NotImplementedError

    def load_lora(self, file: Union[str, Path], scale: float = 1.0, name: Optional[str] = None) -> str:
        """Adds a LoRA, of a file or folder in any format of `opensora.checkpoint.lora`.

        Args:
            file: the file or folder.
            scale: a factor of its update; 0: no update.
            name: for `set_lora_scale` and `unload_lora`; None: the name of the file or folder.

        Returns:
            The name.

        Raises:
            FileNotFoundError: no such file.
            UserError: not a LoRA of this transformer, or its name is taken.
        """
        name = name or Path(file).stem
        if name in self.loras.loaded:
            raise UserError(f"{file}: there is a LoRA of the name {name} already; give this one another name")
        transformer = self.get_transformer()
        adapters = read_lora(file, linear_shapes(transformer))
        self.loras.loaded[name] = LoadedLoRA(adapters, _scale(scale))
        self.loras.apply(transformer)
        return name

    def set_lora_scale(self, name: str, scale: float) -> None:
        """Changes the factor of a LoRA's update.

        Raises:
            UserError: no LoRA of this name, or not a finite number.
        """
        self._loaded(name).scale = _scale(scale)
        self.loras.apply_scales(self.get_transformer())

    def unload_lora(self, name: Optional[str] = None) -> None:
        """Removes a LoRA; None: all of them.

        Raises:
            UserError: no LoRA of this name.
        """
        if name is None:
            self.loras.loaded.clear()
        else:
            self._loaded(name)
            del self.loras.loaded[name]
        self.loras.apply(self.get_transformer())

    def _loaded(self, name: str) -> LoadedLoRA:
        if name not in self.loras.loaded:
            names = ", ".join(self.loras.loaded) or "none"
            raise UserError(f"no LoRA of the name {name!r} is loaded; loaded: {names}")
        return self.loras.loaded[name]


def _scale(value: float) -> float:
    return finite_number(value, "the scale of a LoRA", -1e6, 1e6)
