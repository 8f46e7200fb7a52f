"""Finds and opens weights of any supported format and reads their config.json, without MindSpore."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Union

from opensora.checkpoint.formats.gguf import is_gguf_file, read_gguf
from opensora.checkpoint.formats.mindspore import is_mindspore_file, read_mindspore_file
from opensora.checkpoint.formats.safetensors import is_safetensors_file, read_safetensors
from opensora.checkpoint.formats.torch import UNSUPPORTED_TENSOR, is_torch_file, read_torch_file
from opensora.checkpoint.formats.torch_pickle import Foreign
from opensora.checkpoint.lazy_tensor import FileTensor, LazyTensor, ScaledTensor
from opensora.errors import UserError
from opensora.utils.json_text import read_json
from opensora.utils.logs import logger

WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"  # of the models that are written
# File names that are searched for in a folder, in this order, then patterns that must match a single file.
NAMES = (
    WEIGHTS_NAME,
    "diffusion_pytorch_model.safetensors.index.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "merged.ckpt",
)
PATTERNS = ("*.safetensors.index.json", "*.safetensors", "*.gguf", "*.ckpt", "*.pt", "*.pth", "*.bin")
CHECKPOINT_FOLDER = "ckpt"  # where the published guides download weights to
# Keys under which trainers store EMA and plain weights. They may be nested.
EMA_KEYS = ("ema_state_dict", "ema", "model_ema", "ema_model", "state_dict_ema", "ema_weights")
PLAIN_KEYS = ("state_dict", "gen_model", "model", "module", "model_state_dict", "weights")
LONGEST_NAME = 200  # of a shard's file
DEEPEST_STATE = 4  # levels of nested keys
# Name components added by torch.compile and FSDP, and the prefix added by DDP and DeepSpeed.
WRAPPER_NAMES = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
WRAPPER_PREFIX = "module."
# Names of the scale of `X.weight` in quantized files, and of tensors for quantized inputs, which are not used.
SCALE_NAMES = (".scale_weight", ".weight_scale")
INPUT_SCALE_NAMES = (".scale_input", ".input_scale")
FLOAT8_MARKER = "scaled_fp8"  # a tensor without content


def resolve_path(path: Union[str, Path]) -> Path:
    """The existing file or folder for a path of weights: the path itself, or the same path in `ckpt/`.

    A folder models--ORG--NAME of the Hugging Face cache is resolved to its current snapshot.

    Raises:
        FileNotFoundError: neither exists.
    """
    given = Path(path)
    candidates = [given] if given.is_absolute() else [given, CHECKPOINT_FOLDER / given]
    for candidate in map(_in_snapshot, candidates):
        if candidate.exists():
            return candidate
    raise FileNotFoundError(
        f"{given}: no such file or folder"
        + (f", nor {candidates[1]}; give the path of the weights" if len(candidates) > 1 else "")
    )


def _in_snapshot(path: Path) -> Path:
    """Inserts the current snapshot into a path in a Hugging Face cache that has none."""
    for root in (path, *path.parents):
        snapshots = root / "snapshots"
        if root.name.startswith("models--") and snapshots.is_dir():
            inner = path.relative_to(root)
            if inner.parts[:1] in (("snapshots",), ("blobs",), ("refs",)):
                return path
            return _snapshot(root) / inner
    return path


def _snapshot(root: Path) -> Path:
    """The folder of a cached model's current revision."""
    main = root / "refs" / "main"
    found = sorted(folder for folder in (root / "snapshots").iterdir() if folder.is_dir())
    if main.is_file():
        name = main.read_text(encoding="utf-8", errors="replace").strip()
        found = [folder for folder in found if folder.name == name] or found
    if len(found) != 1:
        raise FileNotFoundError(
            f"{root}: a Hugging Face cache with {len(found)} snapshots, and refs/main names none of them; "
            f"give the path of a folder in {root / 'snapshots'}"
        )
    return found[0]


def read_config(path: Union[str, Path]) -> dict[str, Any]:
    """The config.json in a folder or in the folder of a weights file, or the json file itself.

    Raises:
        FileNotFoundError: no such file.
        UserError: it is not a json object, or has a duplicate key or a number that is not finite.
    """
    path = config_path(path)
    config = read_json(path)
    if not isinstance(config, dict):
        raise UserError(f"{path}: must hold a json object")
    return config


def config_path(path: Union[str, Path]) -> Path:
    """The file that `read_config` reads. Raises FileNotFoundError if it does not exist."""
    path = resolve_path(path)
    if path.suffix != ".json" or path.name.endswith(".index.json"):
        path = (path if path.is_dir() else path.parent) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: not found; "
            + (_pipeline_hint(path.parent) or "put the published config.json into the folder of the weights")
        )
    return path


def _pipeline_hint(folder: Path) -> str:
    """The remedy for a folder whose subfolders hold models; empty for other folders."""
    models = sorted(config.parent.name for config in folder.glob("*/config.json"))
    if not models:
        return ""
    kind = "a whole pipeline"
    if (folder / "model_index.json").is_file():
        index = read_json(folder / "model_index.json")
        kind = f"a whole {index.get('_class_name'):.60}" if isinstance(index, dict) else kind
    return f"the folder holds {kind}; name one of its folders: {', '.join(models[:6])}"


def find_weights(path: Union[str, Path], preferred: str = "") -> Path:
    """The file of weights at a path, which may be the file or its folder.

    Args:
        path: the file or its folder.
        preferred: a pattern of files that come before those of `NAMES`; of several the last by name is taken.

    Raises:
        FileNotFoundError: no such path, or no weights in the folder.
        UserError: the folder has several files of weights, none with a name of `NAMES`.
    """
    path = resolve_path(path)
    if path.is_file():
        return path
    if preferred and (first := sorted(path.glob(preferred))):
        return first[-1]
    for name in NAMES:
        if (path / name).is_file():
            return path / name
    for pattern in PATTERNS:
        found = sorted(path.glob(pattern))
        if len(found) > 1:
            raise UserError(
                f"{path} holds several files of weights ({', '.join(file.name for file in found[:3])}); "
                f"give the path of one of them, or if they are shards, add their index.json"
            )
        if found:
            return found[0]
    raise FileNotFoundError(f"{path}: no weights in this folder ({', '.join(NAMES[::2])} ...)")


def open_state(path: Union[str, Path], use_ema: bool = True, join_scales: bool = True) -> dict[str, LazyTensor]:
    """The tensors at a path by name, which are read on demand.

    Opens safetensors, torch files (zip and legacy), GGUF files, shards with an index.json, and MindSpore checkpoints;
    the format is detected from the content. Name components that torch.compile, DDP, DeepSpeed and FSDP add are
    removed.

    Args:
        path: a file, or a folder with one.
        use_ema: of a training checkpoint, open the EMA weights; False: the plain weights.
        join_scales: join quantized weights and their scales to one tensor; False: keep both under their names.

    Raises:
        FileNotFoundError: no such path, no weights, or a missing shard.
        UserError: a damaged file, an unknown format, or no tensors.
    """
    path = find_weights(path)
    state = _open_shards(path, use_ema) if path.name.endswith(".json") else _open_file(path, use_ema)
    plain = dict(zip(unwrapped_names(state), state.values()))
    if len(plain) < len(state):
        raise UserError(f"{path}: has tensors twice, with and without `_orig_mod.` of torch.compile or another wrapper")
    return joined_scales(plain, path) if join_scales else plain


def unwrapped_names(names: Iterable[str]) -> list[str]:
    """Names of tensors without the components that PyTorch's wrappers add."""
    names = list(names)
    while True:
        plain = [".".join(item for item in name.split(".") if item not in WRAPPER_NAMES) for name in names]
        if plain and all(name.startswith(WRAPPER_PREFIX) for name in plain):
            plain = [name[len(WRAPPER_PREFIX) :] for name in plain]
        if plain == names:
            return names
        names = plain


def joined_scales(state: Mapping[str, LazyTensor], path: Path) -> dict[str, LazyTensor]:
    """The state in which a weight `X.weight` with a scale is one `ScaledTensor`, without other tensors of its scaling.

    Raises:
        UserError: a scale that does not fit its weight; `path` is the file, for the error.
    """
    state = dict(state)
    state.pop(FLOAT8_MARKER, None)
    for name in [name for name in state if name.endswith(".weight")]:
        module = name[: -len(".weight")]
        scales = [module + ending for ending in SCALE_NAMES if module + ending in state]
        if scales:
            try:
                state[name] = ScaledTensor(state[name], state[scales[0]])
            except UserError as error:
                raise UserError(f"{path}: {scales[0]:.100}: {error}") from error
            for ending in (*SCALE_NAMES, *INPUT_SCALE_NAMES):
                state.pop(module + ending, None)
    return state


def _open_file(path: Path, use_ema: bool) -> Mapping[str, LazyTensor]:
    with open(path, "rb") as file:
        start = file.read(16)
    if is_torch_file(start):
        return _pick(path, read_torch_file(path), use_ema)
    state: Mapping[str, LazyTensor]
    if is_gguf_file(start):  # first: one with 123 tensors also looks like safetensors
        state, _ = read_gguf(path)
    elif is_safetensors_file(start):
        state = read_safetensors(path)
    elif is_mindspore_file(start):
        state = read_mindspore_file(path)
    elif start.startswith(b"version https://"):
        raise UserError(f"{path}: a Git LFS pointer, not the weights; run `git lfs pull` in its folder")
    else:
        raise UserError(
            f"{path}: neither safetensors nor a torch file nor a GGUF file nor a MindSpore checkpoint, or truncated"
        )
    if not state:
        raise UserError(f"{path}: holds no tensors")
    return state


def _open_shards(index: Path, use_ema: bool) -> dict[str, LazyTensor]:
    content = read_json(index)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index}: not an index of shards: it has no weight_map")
    shards = {}
    for name in weight_map.values():
        if not isinstance(name, str) or Path(name).name != name or name.endswith(".json") or len(name) > LONGEST_NAME:
            raise UserError(
                f"{index}: the shard {name!r:.100} is not in the folder of the index, or not a file of weights"
            )
    files = sorted(set(weight_map.values()))
    for name in files:
        if not (index.parent / name).is_file():
            raise FileNotFoundError(f"{index.parent / name}: missing; {index.name} lists {len(files)} shards")
        shards[name] = _open_file(index.parent / name, use_ema)
    absent = [name for name, file in weight_map.items() if name not in shards[file]]
    if absent:
        raise UserError(
            f"{index.parent / weight_map[absent[0]]}: has no tensor {absent[0]!r:.100}, which {index.name} lists"
        )
    return {name: shards[file][name] for name, file in weight_map.items()}


def _pick(path: Path, content: Any, use_ema: bool) -> dict[str, FileTensor]:
    """The state dict in the content of a torch file.

    Raises:
        UserError: there is none, or it has a tensor of an unsupported type.
    """
    if isinstance(content, Foreign):
        raise UserError(f"{path}: holds an object of {content.name:.100}, not weights; save its state_dict() instead")
    content = content if isinstance(content, dict) else {}
    for key in EMA_KEYS:
        if use_ema and isinstance(content.get(key), Foreign):
            logger.warning(
                f"{path}: {key} is an object of {content[key].name:.100}, which is not read; using the plain weights"
            )
    state = _find_state(content, EMA_KEYS + PLAIN_KEYS if use_ema else PLAIN_KEYS)
    if not state:
        if not use_ema and _find_state(content, EMA_KEYS + PLAIN_KEYS):
            raise UserError(f"{path}: holds EMA weights only, not the plain weights requested with use_ema False")
        raise UserError(
            f"{path}: holds no tensors"
            + (
                "; a DeepSpeed ZeRO-3 checkpoint has its weights in other files: run its zero_to_fp32.py first"
                if "ds_version" in content
                else ""
            )
        )
    for name, value in state.items():
        if _is_unsupported_tensor(value):
            raise UserError(f"{path}: {name!r:.100} is a {value.name:.100}, which is not supported; save it as float32")
    return {name: value for name, value in state.items() if isinstance(value, FileTensor)}


def _find_state(content: dict, keys: tuple, depth: int = 0) -> dict:
    """The first dict with tensors under one of `keys`, which may be nested, else `content`; only its string keys."""
    for key in keys:
        if depth < DEEPEST_STATE and isinstance(content.get(key), dict):
            state = _find_state(content[key], keys, depth + 1)
            if state:
                return state
    named = {name: value for name, value in content.items() if isinstance(name, str)}
    has_tensors = any(
        isinstance(value, FileTensor) and value.nbytes or _is_unsupported_tensor(value) for value in named.values()
    )
    return named if has_tensors else {}


def _is_unsupported_tensor(value: Any) -> bool:
    return isinstance(value, Foreign) and value.name.startswith((UNSUPPORTED_TENSOR, "torch._utils._rebuild_"))
