"""Base class of all models: loading from and saving to config.json and weights."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Optional, TypeVar, Union

import mindspore as ms
import numpy as np
from mindspore import Parameter, nn
from mindspore.nn.utils import no_init_parameters

from opensora.checkpoint.files import WEIGHTS_NAME, config_path, find_weights, open_state, read_config
from opensora.checkpoint.formats.safetensors import write_safetensors
from opensora.checkpoint.lazy_tensor import ArrayTensor, ConvertedTensor, LazyTensor, summarize
from opensora.checkpoint.shape_check import check_class
from opensora.errors import UserError
from opensora.models.common.layers import ADAPTER, WeightLayer
from opensora.models.model_config import ModelConfig
from opensora.models.stored_weights import WeightLoader
from opensora.models.streaming import BlockStream
from opensora.ops.linear import widened_weight
from opensora.utils.files import atomic_write

ModelT = TypeVar("ModelT", bound="PretrainedModel")


@dataclass(frozen=True)
class OpenedModel(Generic[ModelT]):
    """A model without weights, the tensors of its parameters by name, and their file."""

    model: ModelT
    tensors: Mapping[str, LazyTensor]
    source: Path


@contextmanager
def naming_errors(source: Path) -> Iterator[None]:
    """Has errors of models name the file of the weights."""
    try:
        yield
    except ValueError as error:
        if str(error).startswith(str(source.parent)):
            raise
        raise UserError(f"{source}: {error}") from error


class PretrainedModel(nn.Cell):
    """Base of the models. Parameters have PyTorch's names, so state dicts are exchanged without renaming.

    Attributes:
        config_class: the class of `config`; a subclass sets it.
        config: a subclass sets it in `__init__`, from keyword arguments that are the keys of config.json.
        published_as: other names of the model class in a config.json.
        aliases: further torch names of parameters (tied weights), mapped to the parameter's name.
        ignored_prefixes: prefixes of tensor names that belong to modules not built here.
        preferred_weights: pattern of the files that come first in a folder (`checkpoint.files.find_weights`).
        dtype: the type the model computes in; norms and other statistics stay float32.
        block_list: name of the list of blocks that `from_pretrained` can stream.
        lora_targets: ends of the names of the layers that LoRA adapts by default: queries, keys, values, outputs of
            attention.
        resident: names of parameters of these blocks that are always loaded.
        tables: names of embedding tables whose rows can be read from the file when they are needed.
        unloaded: tensors by name of the parameters that are read from the file when they are needed, as they are held.
        compiled_graphs: parts of the model that were compiled in PyNative mode (`opensora.pipelines.compiled`).
        keep_float32: of this class or of a Cell in it, the parameters that stay float32 whatever `dtype` is: their
            names, or True for all of the Cell.
    """

    config_class: type[ModelConfig]
    config: ModelConfig
    published_as: tuple[str, ...] = ()
    aliases: Mapping[str, str] = {}
    ignored_prefixes: tuple[str, ...] = ()
    preferred_weights = ""
    dtype = ms.float32
    block_list = ""
    lora_targets: tuple[str, ...] = ()
    resident: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    unloaded: Mapping[str, LazyTensor] = {}

    def __init__(self):
        super().__init__()
        self.compiled_graphs: dict[str, Any] = {}

    @classmethod
    def from_pretrained(
        cls: type[ModelT],
        path: Union[str, Path],
        dtype: Any = ms.float32,
        config: Optional[Mapping[str, Any]] = None,
        use_ema: bool = True,
        weights: Optional[str] = None,
        streamed: bool = False,
    ) -> ModelT:
        """The model with the weights at `path`, a folder or file in any format of `checkpoint.files.open_state`.

        Args:
            path: the weights.
            dtype: the type the model computes in; norms and other statistics stay float32.
            config: replaces the config.json in the folder of the weights.
            use_ema: load the EMA weights of a training checkpoint that also has plain weights.
            weights: how the weights of linear layers and convolutions are held, one of
                `opensora.config.memory.WEIGHTS`; such a model cannot be trained. None: in `dtype`.
            streamed: read the weights of each block from the file when it is needed (`models.streaming`).

        Raises:
            FileNotFoundError: no weights or no config.json.
            UserError: damaged files, or weights that do not fit the configuration.
        """
        opened = cls.open(path, config, use_ema)
        with naming_errors(opened.source):
            opened.model._fill(opened.tensors, dtype, True, opened.source, weights, streamed)
        return opened.model

    @classmethod
    def open(
        cls: type[ModelT], path: Union[str, Path], config: Optional[Mapping[str, Any]] = None, use_ema: bool = True
    ) -> OpenedModel[ModelT]:
        """Checks the weights for `from_pretrained`, which has the same arguments, without reading them."""
        if config is None:
            try:
                config = cls.published_config(path)
            except FileNotFoundError:
                find_weights(path, cls.preferred_weights)  # its error is better if the weights are missing too
                raise
        source = find_weights(path, cls.preferred_weights)
        state = open_state(source, use_ema)
        with naming_errors(source):
            model = cls.without_weights(**config)
            tensors = model.canonical_names(state)
            model._check(tensors, strict=True)
        return OpenedModel(model, tensors, source)

    @classmethod
    def published_config(cls, path: Union[str, Path], flag: str = "") -> dict[str, Any]:
        """The config.json at `path`, validated without reading any weights.

        Args:
            path: folder or file of the weights, or the config.json itself.
            flag: the command-line flag of the path, for error messages.

        Raises:
            FileNotFoundError: no config.json.
            UserError: it is for another model, or has keys or values that this model does not support.
        """
        config = read_config(path)
        check_class(config, path, (cls.__name__, *cls.published_as), flag)
        try:
            values = cls.config_class.from_dict(config)
        except ValueError as error:
            raise UserError(f"{config_path(path)}: {error!s:.500}") from error
        return {key: getattr(values, key, value) for key, value in config.items()}

    @classmethod
    def without_weights(cls: type[ModelT], **config) -> ModelT:
        """The model with parameters that have shapes but no values yet."""
        with no_init_parameters():
            return cls(**config)

    def load_torch_state(
        self, state: Mapping[str, Union[np.ndarray, LazyTensor]], strict: bool = True
    ) -> tuple[list[str], list[str]]:
        """Sets the parameters from arrays, or tensors of `open_state`, by torch name.

        Returns:
            The missing and the unexpected names.

        Raises:
            UserError: wrong shapes, or if `strict` missing or unexpected names. No parameter is changed then.
        """
        self._require_loaded()
        tensors = {
            name: value if isinstance(value, LazyTensor) else ArrayTensor(np.asarray(value))
            for name, value in state.items()
        }
        return self._fill(tensors, self.dtype, strict)

    def torch_state(self) -> dict[str, np.ndarray]:
        """Copies of all weights and of PyTorch's buffers by torch name; bfloat16 becomes float32."""
        state = {name: value.copy() for name, value in self._arrays().items()}
        state.update({alias: state[name] for alias, name in self.aliases.items()})
        state.update(self.torch_buffers())
        return state

    def save_pretrained(self, folder: Union[str, Path]) -> None:
        """Writes config.json and the weights, both readable by the PyTorch implementation."""
        folder = Path(folder)
        state = self._arrays()
        state.update(self.torch_buffers())
        write_safetensors(folder / WEIGHTS_NAME, {name: ArrayTensor(value) for name, value in state.items()})
        self.save_config(folder)

    def save_config(self, folder: Path) -> None:
        """Writes `folder`/config.json."""
        with atomic_write(folder / "config.json") as temporary:
            config = {"_class_name": type(self).__name__, **self.config.to_dict()}
            temporary.write_text(json.dumps(config, indent=2), encoding="utf-8")

    def forget_graphs(self) -> None:
        """Has all Cells of the model compiled anew when they are called, because they have changed."""
        self.compiled_graphs.clear()
        for _, cell in self.cells_and_names():
            cell.compile_cache.clear()

    def own_parameters(self) -> dict[str, Parameter]:
        """The parameters by name, without those of adapters (`opensora.models.lora`)."""
        return {name: p for name, p in self.parameters_and_names() if ADAPTER not in name.split(".")}

    def torch_buffers(self) -> dict[str, np.ndarray]:
        """Names and values of tensors that PyTorch checkpoints store and that are constants here."""
        return {}

    def select_tensors(self, state: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
        """The tensors of a checkpoint that the PyTorch model consists of: this model's parameters, and its buffers.

        Raises:
            UserError: a tensor is missing or has the wrong shape.
        """
        state = self.canonical_names(state)
        selected = {name: state[name] for name in self.own_parameters() if name in state}
        self._check(selected, strict=True)
        return {**selected, **{name: ArrayTensor(value) for name, value in self.torch_buffers().items()}}

    def cast(self: ModelT, dtype) -> ModelT:
        """Converts the parameters in place, except norms and other statistics (float32); returns the model.

        Raises:
            UserError: the weights are streamed or stored in fewer bits.
        """
        self._require_loaded()
        if any(isinstance(cell, WeightLayer) and cell.compute_dtype is not None for _, cell in self.cells_and_names()):
            raise UserError(f"{type(self).__name__} computes in another dtype than its weights have; load it anew")
        single = self.float32_parameters()
        for name, parameter in self.own_parameters().items():
            if name not in single and parameter.dtype != dtype:
                parameter.set_dtype(dtype)
        self.dtype = dtype
        return self

    def _fill(
        self,
        state: Mapping[str, LazyTensor],
        dtype,
        strict: bool,
        source: Union[str, Path] = "weights",
        weights: Optional[str] = None,
        streamed: bool = False,
    ) -> tuple[list[str], list[str]]:
        """Checks names and shapes, then reads one tensor at a time; warns of NaN, infinity and integer types."""
        state = self.canonical_names(state)
        missing, unexpected = self._check(state, strict)
        weights = weights or ("as_stored" if streamed else None)
        loader = WeightLoader(self, dtype, self.float32_parameters(), weights)
        self.dtype = dtype
        unloaded = {}
        if weights is not None and ms.get_context("mode") == ms.PYNATIVE_MODE:
            unloaded.update({name: state[name] for name in self.tables})
            self._open_tables(unloaded)
        if streamed:
            stream = self._stream(state, loader, source)
            self.replace_blocks(stream)
            unloaded.update({name: tensor for tensors in stream.tensors for name, tensor in tensors.items()})
        self.unloaded = {
            name: ConvertedTensor(tensor, loader.kind(name, tensor), name) for name, tensor in unloaded.items()
        }
        for name in loader.parameters:
            if name in self.unloaded:
                loader.release(name)
            elif name in state:
                # A streamed model maps blocks only, whose place in the file is checked before each use.
                loader.load(name, state[name], may_map=weights is not None and not streamed)
        loader.warn(source)
        return missing, unexpected

    def _stream(self, state: Mapping[str, LazyTensor], loader: WeightLoader, source: Union[str, Path]) -> BlockStream:
        """The stream of the blocks in `block_list`."""
        if ms.get_context("mode") != ms.PYNATIVE_MODE:
            raise UserError("blocks are read from the file in PyNative mode only: use --mode 1, or more --memory")
        blocks = self.ordered_blocks()
        tensors = [
            {name: state[name] for name in loader.parameters if self.block_of(name) == str(index) and name in state}
            for index in range(len(blocks))
        ]
        return BlockStream(blocks, tensors, loader, source)

    def ordered_blocks(self) -> list[nn.Cell]:
        """The blocks in the order of their computation, which are streamed, recomputed and sharded one by one."""
        return list(dict(self.cells_and_names())[self.block_list]) if self.block_list else []

    def block_of(self, name: str) -> Optional[str]:
        """The index in `ordered_blocks` of the block that the parameter `name` is streamed with; None: it is loaded."""
        prefix = f"{self.block_list}."
        if not self.block_list or not name.startswith(prefix) or name in self.resident:
            return None
        return name[len(prefix) :].partition(".")[0]

    def _open_tables(self, tables: Mapping[str, LazyTensor]) -> None:
        """Has the embedding tables read their rows from these tensors when they are needed."""

    def replace_blocks(self, blocks: Any) -> None:
        """Computes with other blocks in place of `ordered_blocks`: an iterable of Cells."""
        raise NotImplementedError(f"{type(self).__name__} has no list of blocks")

    @property
    def is_streamed(self) -> bool:
        """Whether the blocks are read from the file when they are needed."""
        return any(self.block_of(name) is not None for name in self.unloaded)

    def values(self, name: str) -> Iterator[np.ndarray]:
        """The values of the parameter `name`, float32, in chunks, loaded or not."""
        if name in self.unloaded:
            for chunk in self.unloaded[name].iter_values():
                yield chunk.astype(np.float32, copy=False)
        else:
            yield self._numpy(name, dict(self.cells_and_names())).astype(np.float32, copy=False)

    def canonical_names(self, state: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
        """The state without ignored prefixes, and with the parameter's name for a tensor that has only an alias."""
        state = {name: tensor for name, tensor in state.items() if not name.startswith(self.ignored_prefixes)}
        for alias, name in self.aliases.items():
            if alias in state:
                state.setdefault(name, state[alias])
        return state

    def _check(self, state: Mapping[str, LazyTensor], strict: bool) -> tuple[list[str], list[str]]:
        """(missing, unexpected) names; raises UserError for wrong shapes, wrong buffers, and if `strict` names."""
        parameters = self.own_parameters()
        buffers = self.torch_buffers()
        missing = [name for name in parameters if name not in state]
        unexpected = [
            name for name in state if name not in parameters and name not in buffers and name not in self.aliases
        ]
        if strict and (missing or unexpected):
            names = f"{summarize('missing', missing)}; {summarize('unexpected', unexpected)}"
            raise UserError(f"weights do not fit {type(self).__name__}: {names}")
        wrong = [
            f"{name} {tuple(state[name].shape)}, expected {tuple(parameter.shape)}"
            for name, parameter in parameters.items()
            if name in state and tuple(state[name].shape) != tuple(parameter.shape)
        ]
        if wrong:
            raise UserError(
                f"weights do not fit the configuration of {type(self).__name__}: {summarize('wrong shapes', wrong)}"
            )
        for name, value in buffers.items():
            if name in state and (
                tuple(state[name].shape) != value.shape or not np.allclose(state[name].numpy(), value, atol=1e-3)
            ):
                raise UserError(f"{name} differs from the constant that {type(self).__name__} has built in")
        return missing, unexpected

    def _require_loaded(self) -> None:
        if self.unloaded:
            raise UserError(
                f"{type(self).__name__} reads weights from its file while it computes: load it without `streamed` and "
                "`weights` to change them"
            )

    def _arrays(self) -> dict[str, np.ndarray]:
        """The values of all parameters by name."""
        cells = dict(self.cells_and_names())
        return {name: self._numpy(name, cells) for name in self.own_parameters()}

    def _numpy(self, name: str, cells: Mapping[str, nn.Cell]) -> np.ndarray:
        """The values of a parameter, loaded or not; bfloat16 and stored weights become float32."""
        if name in self.unloaded:
            return self.unloaded[name].numpy().astype(np.float32, copy=False)
        cell_name, _, own = name.rpartition(".")
        cell = cells[cell_name]
        value = getattr(cell, own)
        if isinstance(cell, WeightLayer) and cell.compute_dtype is not None and own == "weight":
            value = widened_weight(value, cell.scale, ms.float32)
        return (value.astype(ms.float32) if value.dtype == ms.bfloat16 else value).asnumpy()

    def float32_parameters(self) -> set[str]:
        """Names of the parameters that stay float32 in 16-bit models."""
        names: set[str] = set()
        for cell_name, cell in self.cells_and_names():
            kept = getattr(cell, "keep_float32", ())
            if kept is True:
                kept = [name for name, _ in cell.parameters_and_names()]
            names.update(f"{cell_name}.{name}" if cell_name else name for name in kept)
        return names
