"""Finds the weights at a path, whatever their format, and reads their config.json. Needs no MindSpore."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Union

from opensora.checkpoint.formats.mindspore import is_mindspore_file, read_mindspore_file
from opensora.checkpoint.formats.safetensors import is_safetensors_file, read_safetensors
from opensora.checkpoint.formats.torch import UNREAD_TENSOR, is_torch_file, read_torch_file
from opensora.checkpoint.formats.torch_pickle import Foreign
from opensora.checkpoint.lazy_tensor import FileTensor
from opensora.errors import UserError
from opensora.utils.json_text import read_json
from opensora.utils.logs import logger

# In a folder the first of these that is there is taken; of the last ones there must be a single file.
NAMES = (
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "merged.ckpt",
)
PATTERNS = ("*.safetensors.index.json", "*.safetensors", "*.ckpt", "*.pt", "*.pth", "*.bin")
CHECKPOINT_FOLDER = "ckpt"  # where the guides put downloads
# Where trainers put weights in a file, the EMA's first. Each may hold another of them.
EMA_KEYS = ("ema_state_dict", "ema", "model_ema", "ema_model", "state_dict_ema", "ema_weights")
PLAIN_KEYS = ("state_dict", "gen_model", "model", "module", "model_state_dict", "weights")
LONGEST_NAME = 200  # of a shard's file
DEEPEST_STATE = 4  # keys one inside the other
# What wrappers put into names: torch.compile anywhere, DDP and DeepSpeed before all of them, FSDP anywhere.
WRAPPER_PARTS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
WRAPPER_PREFIX = "module."


def resolve_path(path: Union[str, Path]) -> Path:
    """The file or folder that a path of weights means.

    That is the path itself; else the same path under `ckpt/`. A folder of the Hugging Face cache, models--ORG--NAME,
    means its current snapshot.

    Raises:
        FileNotFoundError: nothing at any of these places.
    """
    given = Path(path)
    places = [given] if given.is_absolute() else [given, CHECKPOINT_FOLDER / given]
    for place in places:
        place = _in_snapshot(place)
        if place.exists():
            return place
    raise FileNotFoundError(
        f"{given}: no such file or folder"
        + (f", nor {places[1]}; give the path of the weights" if len(places) > 1 else "")
    )


def _in_snapshot(path: Path) -> Path:
    """A path in a Hugging Face cache, with the snapshot that it leaves out."""
    for root in (path, *path.parents):
        snapshots = root / "snapshots"
        if root.name.startswith("models--") and snapshots.is_dir():
            inner = path.relative_to(root)
            if inner.parts[:1] in (("snapshots",), ("blobs",), ("refs",)):
                return path
            return _snapshot(root) / inner
    return path


def _snapshot(root: Path) -> Path:
    """The folder of a cached model's newest revision."""
    main = root / "refs" / "main"
    found = sorted(folder for folder in (root / "snapshots").iterdir() if folder.is_dir())
    if main.is_file():
        name = main.read_text(encoding="utf-8", errors="replace").strip()
        found = [folder for folder in found if folder.name == name] or found
    if len(found) != 1:
        raise FileNotFoundError(
            f"{root}: a Hugging Face cache with {len(found)} snapshots, and refs/main names none "
            f"of them; name a folder in {root / 'snapshots'}"
        )
    return found[0]


def read_config(path: Union[str, Path]) -> dict[str, Any]:
    """The config.json in a folder, beside a file of weights, or the json file itself.

    Raises:
        FileNotFoundError: there is none.
        UserError: it is no json object, or has a key twice or a number that is not finite.
    """
    path = config_path(path)
    config = read_json(path)
    if not isinstance(config, dict):
        raise UserError(f"{path}: should hold a json object")
    return config


def config_path(path: Union[str, Path]) -> Path:
    """The file that `read_config` reads. Raises FileNotFoundError if there is none."""
    path = resolve_path(path)
    if path.suffix != ".json" or path.name.endswith(".index.json"):
        path = (path if path.is_dir() else path.parent) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: not found; "
            + (_parts_of_pipeline(path.parent) or "the published config.json belongs beside the weights")
        )
    return path


def _parts_of_pipeline(folder: Path) -> str:
    """A remark on a folder whose subfolders hold models."""
    parts = sorted(config.parent.name for config in folder.glob("*/config.json"))
    if not parts:
        return ""
    kind = "a whole pipeline"
    if (folder / "model_index.json").is_file():
        index = read_json(folder / "model_index.json")
        kind = f"a whole {index.get('_class_name'):.60}" if isinstance(index, dict) else kind
    return f"the folder holds {kind}; name one of its folders: {', '.join(parts[:6])}"


def find_weights(path: Union[str, Path]) -> Path:
    """The file of weights that a path means: itself, or one in the folder.

    Raises:
        FileNotFoundError: nothing there.
        UserError: several files, none of which has one of the usual names.
    """
    path = resolve_path(path)
    if path.is_file():
        return path
    for name in NAMES:
        if (path / name).is_file():
            return path / name
    for pattern in PATTERNS:
        found = sorted(path.glob(pattern))
        if len(found) > 1:
            raise UserError(
                f"{path} holds several files of weights ({', '.join(file.name for file in found[:3])}); "
                f"name one of them, or if they are shards, add their index.json"
            )
        if found:
            return found[0]
    raise FileNotFoundError(f"{path}: no weights in this folder ({', '.join(NAMES[::2])} ...)")


def open_state(path: Union[str, Path], use_ema: bool = True) -> dict[str, FileTensor]:
    """The tensors at a path by name, to be read one by one.

    Reads safetensors, torch files (zip and legacy), shards named by an index, and MindSpore checkpoints; what a file
    is shows in its content, not its name. Of a training checkpoint the EMA weights are taken, or with `use_ema` False
    the plain ones. What torch.compile, DDP, DeepSpeed and FSDP add to names comes off.

    Raises:
        FileNotFoundError: nothing there, or a shard is missing.
        UserError: a damaged file, one of another kind, or one without tensors.
    """
    path = find_weights(path)
    state = _open_shards(path, use_ema) if path.name.endswith(".json") else _open_file(path, use_ema)
    plain = dict(zip(unwrapped_names(state), state.values()))
    if len(plain) < len(state):
        raise UserError(f"{path}: has tensors twice, with and without the `_orig_mod.` of torch.compile or the like")
    return plain


def unwrapped_names(names: Iterable[str]) -> list[str]:
    """Names of tensors without what wrappers of torch added."""
    names = list(names)
    while True:
        plain = [".".join(part for part in name.split(".") if part not in WRAPPER_PARTS) for name in names]
        if plain and all(name.startswith(WRAPPER_PREFIX) for name in plain):
            plain = [name[len(WRAPPER_PREFIX) :] for name in plain]
        if plain == names:
            return names
        names = plain


def _open_file(path: Path, use_ema: bool) -> dict[str, FileTensor]:
    with open(path, "rb") as file:
        start = file.read(16)
    if is_torch_file(start):
        return _pick(path, read_torch_file(path), use_ema)
    if is_safetensors_file(start):
        state = read_safetensors(path)
    elif is_mindspore_file(start):
        state = read_mindspore_file(path)
    elif start.startswith(b"version https://"):
        raise UserError(f"{path}: a note of Git LFS where the weights should be; run `git lfs pull` in its folder")
    else:
        raise UserError(f"{path}: neither safetensors nor a torch file nor a MindSpore checkpoint, or cut off")
    if not state:
        raise UserError(f"{path}: holds no tensors")
    return state


def _open_shards(index: Path, use_ema: bool) -> dict[str, FileTensor]:
    content = read_json(index)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index}: not an index of shards (no weight_map)")
    shards = {}
    for name in weight_map.values():
        if not isinstance(name, str) or Path(name).name != name or name.endswith(".json") or len(name) > LONGEST_NAME:
            raise UserError(
                f"{index}: the shard {name!r:.100} is not in the index's own folder, or is no file of weights"
            )
    files = sorted(set(weight_map.values()))
    for name in files:
        if not (index.parent / name).is_file():
            raise FileNotFoundError(f"{index.parent / name}: missing; {index.name} lists {len(files)} shards")
        shards[name] = _open_file(index.parent / name, use_ema)
    absent = [name for name, file in weight_map.items() if name not in shards[file]]
    if absent:
        raise UserError(
            f"{index.parent / weight_map[absent[0]]}: has no tensor {absent[0]!r:.100}, which {index.name} says it has"
        )
    return {name: shards[file][name] for name, file in weight_map.items()}


def _pick(path: Path, content: Any, use_ema: bool) -> dict[str, FileTensor]:
    """The state dict in what a torch file held.

    Raises:
        UserError: there is none, or one of its tensors is of a kind that is not read.
    """
    if isinstance(content, Foreign):
        raise UserError(f"{path}: holds an object of {content.name:.100}, not weights; save its state_dict() instead")
    content = content if isinstance(content, dict) else {}
    for key in EMA_KEYS:
        if use_ema and isinstance(content.get(key), Foreign):
            logger.warning(
                f"{path}: {key} is an object of {content[key].name:.100}, which is not read; the plain weights are "
                f"taken"
            )
    state = _find_state(content, EMA_KEYS + PLAIN_KEYS if use_ema else PLAIN_KEYS)
    if not state:
        if not use_ema and _find_state(content, EMA_KEYS + PLAIN_KEYS):
            raise UserError(f"{path}: holds EMA weights only, and plain ones are asked for")
        raise UserError(
            f"{path}: holds no tensors"
            + (
                "; a DeepSpeed ZeRO-3 checkpoint has its weights in other files: run its zero_to_fp32.py first"
                if "ds_version" in content
                else ""
            )
        )
    for name, value in state.items():
        if _is_unread_tensor(value):
            raise UserError(f"{path}: {name!r:.100} is a {value.name:.100}, which is not read here; save it as float32")
    return {name: value for name, value in state.items() if isinstance(value, FileTensor)}


def _find_state(content: dict, keys: tuple, depth: int = 0) -> dict:
    """The first dict with tensors under one of `keys`, however deep, else `content` itself, without other keys."""
    for key in keys:
        if depth < DEEPEST_STATE and isinstance(content.get(key), dict):
            state = _find_state(content[key], keys, depth + 1)
            if state:
                return state
    named = {name: value for name, value in content.items() if isinstance(name, str)}
    has_tensors = any(
        isinstance(value, FileTensor) and value.nbytes or _is_unread_tensor(value) for value in named.values()
    )
    return named if has_tensors else {}


def _is_unread_tensor(value: Any) -> bool:
    return isinstance(value, Foreign) and value.name.startswith((UNREAD_TENSOR, "torch._utils._rebuild_"))
