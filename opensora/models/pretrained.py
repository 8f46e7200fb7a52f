"""From config.json and weights to a Cell and back; the base of all models and of their configurations."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Optional, Union, get_args, get_origin, get_type_hints

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn
from mindspore.nn.utils import no_init_parameters

from opensora.checkpoint.files import config_path, find_weights, open_state, read_config
from opensora.checkpoint.formats.safetensors import write_safetensors
from opensora.checkpoint.lazy_tensor import FLOATS, ArrayTensor, FileTensor, LazyTensor, few, is_finite
from opensora.checkpoint.shape_check import check_kind
from opensora.errors import UserError
from opensora.utils.files import atomic_write
from opensora.utils.logs import logger

WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class ModelConfig:
    """Base of model configurations: the fields are the keys of the published config.json.

    `ignored` names published keys that mean nothing here; keys that begin with an underscore are notes.
    """

    ignored: ClassVar[tuple] = ()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """The configuration; numbers that are written as text are read.

        Raises:
            UserError: unknown keys, or values of another type.
        """
        known = [field.name for field in fields(cls)]
        types = get_type_hints(cls)
        kept = {key: value for key, value in values.items() if not key.startswith("_") and key not in cls.ignored}
        for key in kept:
            if key not in known:
                close = difflib.get_close_matches(key, known, n=3)
                raise UserError(
                    f"{cls.__name__} has no key {key!r:.100}" + (f"; did you mean {', '.join(close)}?" if close else "")
                )
            try:
                kept[key] = _as_type(kept[key], types[key])
            except (TypeError, ValueError) as error:
                raise UserError(f"{cls.__name__}: {key} {kept[key]!r:.60} is not {_type_name(types[key])}") from error
        return cls(**kept)

    def to_dict(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value is not None}


def _as_type(value: Any, kind: Any) -> Any:
    """A value of a config.json as the type of its field. Raises TypeError or ValueError if it is none."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Union:
        for choice in arguments:
            try:
                return _as_type(value, choice)
            except (TypeError, ValueError):
                pass
    elif origin is Sequence:
        if isinstance(value, (list, tuple)):
            return type(value)(_as_type(item, arguments[0]) for item in value)
    elif kind is bool or isinstance(value, bool):
        if kind is bool and isinstance(value, (bool, str)):
            return {"true": True, "false": False}[str(value).lower()] if isinstance(value, str) else value
    elif kind is int:
        if int(value) == float(value):
            return int(value)
    elif kind is float:
        if math.isfinite(float(value)):
            return float(value) if isinstance(value, str) else value
    elif isinstance(value, kind):
        return value
    raise TypeError(f"not {kind}")


def _type_name(kind: Any) -> str:
    if get_origin(kind) is Union:
        return " or ".join(_type_name(choice) for choice in get_args(kind))
    if get_origin(kind) is Sequence:
        return f"a list of which each is {_type_name(get_args(kind)[0])}"
    return {int: "an integer", float: "a finite number", bool: "true or false", str: "a text"}.get(kind, "null")


class PretrainedModel(nn.Cell):
    """Base of the models. Parameters carry PyTorch's names, so a state dict travels both ways without renaming.

    A subclass sets `config_class` and in __init__ `self.config`, and `published_as` to other names of its class in a
    config.json. `aliases` maps further torch names to parameters
    (tied weights); tensors whose names begin with one of `skipped` belong to parts that are not built here.
    """

    config_class: type = ModelConfig
    published_as: tuple = ()
    aliases: dict[str, str] = {}
    skipped: tuple = ()
    dtype = ms.float32

    @classmethod
    def from_pretrained(
        cls, path: Union[str, Path], dtype=ms.float32, config: Optional[Mapping[str, Any]] = None, use_ema: bool = True
    ) -> PretrainedModel:
        """The model with the weights at `path`, a folder or file in any format of `checkpoint_files.open_state`.

        Args:
            dtype: what the model computes in; norms and other statistics stay float32.
            config: instead of the config.json beside the weights.
            use_ema: take the EMA weights of a training checkpoint that has both.

        Raises:
            FileNotFoundError, UserError: no or damaged files; weights that do not fit the configuration.
        """
        if config is None:
            try:
                config = cls.published_config(path)
            except FileNotFoundError:
                find_weights(path)  # a folder without weights is said to be one
                raise
        source = find_weights(path)
        state = open_state(source, use_ema)
        try:
            model = cls.without_weights(**config)
            model._fill(state, dtype, strict=True, source=source)
        except ValueError as error:
            if str(error).startswith(str(source.parent)):
                raise
            raise UserError(f"{source}: {error}") from error
        return model

    @classmethod
    def published_config(cls, path: Union[str, Path], flag: str = "") -> dict[str, Any]:
        """The config.json at `path`, checked without reading any weights.

        Args:
            flag: the command's flag that names the path, for errors.

        Raises:
            FileNotFoundError: there is none.
            UserError: it is for another model, or has keys or values that this one has no use for.
        """
        config = read_config(path)
        check_kind(config, path, (cls.__name__, *cls.published_as), flag)
        try:
            values = cls.config_class.from_dict(config)
        except ValueError as error:
            raise UserError(f"{config_path(path)}: {error!s:.500}") from error
        return {key: getattr(values, key, value) for key, value in config.items()}

    @classmethod
    def without_weights(cls, **config) -> PretrainedModel:
        """The model with parameters that have shapes but no values yet."""
        with no_init_parameters():
            return cls(**config)

    def load_torch_state(
        self, state: Mapping[str, Union[np.ndarray, FileTensor]], strict: bool = True
    ) -> tuple[list[str], list[str]]:
        """Takes weights by their torch names, arrays or what `open_state` gives; returns (missing, unexpected) names.

        Raises:
            UserError: shapes that differ, and if `strict` names that are missing or unexpected; nothing is changed.
        """
        tensors = {
            name: value if isinstance(value, FileTensor) else ArrayTensor(np.asarray(value))
            for name, value in state.items()
        }
        return self._fill(tensors, self.dtype, strict)

    def torch_state(self) -> dict[str, np.ndarray]:
        """Copies of all weights by their torch names, with what PyTorch keeps as buffers here constants; no bfloat16."""
        state = {name: _numpy(parameter).copy() for name, parameter in self.parameters_and_names()}
        state.update({alias: state[name] for alias, name in self.aliases.items()})
        state.update(self.constants())
        return state

    def save_pretrained(self, folder: Union[str, Path]) -> None:
        """Writes config.json and weights as PyTorch's library reads them."""
        folder = Path(folder)
        state = {name: _numpy(parameter) for name, parameter in self.parameters_and_names()}
        write_safetensors(
            folder / WEIGHTS_NAME, {name: ArrayTensor(value) for name, value in {**state, **self.constants()}.items()}
        )
        self.save_config(folder)

    def save_config(self, folder: Path) -> None:
        """Writes config.json."""
        with atomic_write(folder / "config.json") as temporary:
            config = {"_class_name": type(self).__name__, **self.config.to_dict()}
            temporary.write_text(json.dumps(config, indent=2), encoding="utf-8")

    def constants(self) -> dict[str, np.ndarray]:
        """Torch names and values of what is fixed here but stored in PyTorch's files."""
        return {}

    def own_tensors(self, state: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
        """Of a checkpoint's tensors those of this model, and its constants: what PyTorch's model is made of.

        Raises:
            UserError: one is missing or has another shape.
        """
        state = self._with_aliases(state)
        own = {name: state[name] for name, _ in self.parameters_and_names() if name in state}
        self._check(own, strict=True)
        return {**own, **{name: ArrayTensor(value) for name, value in self.constants().items()}}

    def cast(self, dtype) -> PretrainedModel:
        """The model itself, to compute in `dtype` from now on; norms and other statistics stay float32."""
        single = self._float32_parameters()
        for name, parameter in self.parameters_and_names():
            if name not in single and parameter.dtype != dtype:
                parameter.set_dtype(dtype)
        self.dtype = dtype
        return self

    def _fill(
        self, state: Mapping[str, LazyTensor], dtype, strict: bool, source: Union[str, Path] = "weights"
    ) -> tuple[list[str], list[str]]:
        """Checks names and shapes, then reads tensor after tensor; notes what cannot be right in those of `source`."""
        state = self._with_aliases(state)
        missing, unexpected = self._check(state, strict)
        single = self._float32_parameters()
        not_finite, integers = [], []
        for name, parameter in self.parameters_and_names():
            if name in state:
                value = state[name].numpy()
                if not is_finite(value):
                    not_finite.append(name)
                if isinstance(state[name], FileTensor) and state[name].dtype not in FLOATS:
                    integers.append(f"{name}: {state[name].dtype}")
                _set(parameter, value, ms.float32 if name in single else dtype)
        if not_finite:
            logger.warning(
                f"{source}: {few('tensors hold NaN or infinity', not_finite)}: what the model computes will be NaN"
            )
        if integers:
            logger.warning(
                f"{source}: {few('tensors are integers where the model has floats', integers)}: they are taken as "
                f"they are, without the scale that quantised weights need"
            )
        self.dtype = dtype
        return missing, unexpected

    def _with_aliases(self, state: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
        """The state without skipped parts, and with the parameter's own name where it has only another one."""
        state = {name: tensor for name, tensor in state.items() if not name.startswith(self.skipped)}
        for alias, name in self.aliases.items():
            if alias in state:
                state.setdefault(name, state[alias])
        return state

    def _check(self, state: Mapping[str, LazyTensor], strict: bool) -> tuple[list[str], list[str]]:
        """(missing, unexpected) names; an error where shapes or constants differ, or `strict` and names do."""
        parameters = dict(self.parameters_and_names())
        constants = self.constants()
        missing = [name for name in parameters if name not in state]
        unexpected = [
            name for name in state if name not in parameters and name not in constants and name not in self.aliases
        ]
        if strict and (missing or unexpected):
            raise UserError(
                f"weights do not fit {type(self).__name__}: {few('missing', missing)}; {few('unexpected', unexpected)}"
            )
        wrong = [
            f"{name} {tuple(state[name].shape)}, expected {tuple(parameter.shape)}"
            for name, parameter in parameters.items()
            if name in state and tuple(state[name].shape) != tuple(parameter.shape)
        ]
        if wrong:
            raise UserError(
                f"weights do not fit the configuration of {type(self).__name__}: {few('wrong shapes', wrong)}"
            )
        for name, value in constants.items():
            if name in state and (
                tuple(state[name].shape) != value.shape or not np.allclose(state[name].numpy(), value, atol=1e-3)
            ):
                raise UserError(f"{name} is not the constant {type(self).__name__} has built in")
        return missing, unexpected

    def _float32_parameters(self) -> set[str]:
        return {
            f"{cell_name}.{name}" if cell_name else name
            for cell_name, cell in self.cells_and_names()
            if getattr(cell, "keep_float32", False)
            for name, _ in cell.parameters_and_names()
        }


def _set(parameter: Parameter, value: np.ndarray, dtype) -> None:
    if parameter.dtype != dtype:
        parameter.set_dtype(dtype)
    parameter.set_data(Tensor(value.astype(np.float32, copy=False)).astype(dtype))


def _numpy(parameter: Parameter) -> np.ndarray:
    return (parameter.astype(ms.float32) if parameter.dtype == ms.bfloat16 else parameter).asnumpy()
