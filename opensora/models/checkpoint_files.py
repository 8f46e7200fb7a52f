"""Finds the weights at a path, whatever their format, and reads their config.json. Needs no MindSpore."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Union

from opensora.models.mindspore_file import is_mindspore_file, read_mindspore_file
from opensora.models.safetensors_file import is_safetensors_file, read_safetensors
from opensora.models.tensor_file import StoredTensor
from opensora.models.torch_file import is_torch_file, read_torch_file

# In a folder the first of these that is there is taken; of the last ones there must be a single file.
NAMES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors.index.json",
         "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
         "merged.ckpt")
PATTERNS = ("*.safetensors.index.json", "*.safetensors", "*.ckpt", "*.pt", "*.pth", "*.bin")


def read_config(path: Union[str, Path]) -> dict[str, Any]:
    """The config.json in a folder, beside a file of weights, or the json file itself.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no json object.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if path.suffix != ".json" or path.name.endswith(".index.json"):
        path = (path if path.is_dir() else path.parent) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found; the published config.json belongs beside the weights")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not a json file ({error})") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path}: should hold a json object")
    return config


def find_weights(path: Union[str, Path]) -> Path:
    """The file of weights that a path means: itself, or one in the folder.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: several files, none of which has one of the usual names.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if path.is_file():
        return path
    for name in NAMES:
        if (path / name).is_file():
            return path / name
    for pattern in PATTERNS:
        found = sorted(path.glob(pattern))
        if len(found) > 1:
            raise ValueError(f"{path} holds several files of weights ({', '.join(file.name for file in found[:3])}); "
                             f"name one of them, or if they are shards, add their index.json")
        if found:
            return found[0]
    raise FileNotFoundError(f"{path}: no weights in this folder ({', '.join(NAMES[::2])} ...)")


def open_state(path: Union[str, Path], use_ema: bool = True) -> dict[str, StoredTensor]:
    """The tensors at a path by name, to be read one by one.

    Reads safetensors, torch files (zip and legacy), shards named by an index, and MindSpore checkpoints; what a file
    is shows in its content, not its name. Of a training checkpoint the EMA weights are taken, or with `use_ema` False
    the plain ones.

    Raises:
        FileNotFoundError: nothing there, or a shard is missing.
        ValueError: a damaged file, one of another kind, or one without tensors.
    """
    path = find_weights(path)
    if path.name.endswith(".json"):
        return _open_shards(path, use_ema)
    with open(path, "rb") as file:
        start = file.read(16)
    if is_torch_file(start):
        state = _pick(read_torch_file(path), use_ema)
    elif is_safetensors_file(start):
        state = read_safetensors(path)
    elif is_mindspore_file(start):
        state = read_mindspore_file(path)
    elif start.startswith(b"version https://"):
        raise ValueError(f"{path}: a note of Git LFS where the weights should be; run `git lfs pull` in its folder")
    else:
        raise ValueError(f"{path}: neither safetensors nor a torch file nor a MindSpore checkpoint, or cut off")
    if not state:
        raise ValueError(f"{path}: holds no tensors")
    return state


def _open_shards(index: Path, use_ema: bool) -> dict[str, StoredTensor]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index}: not an index of shards (no weight_map)") from error
    shards = {}
    for name in files:
        if not isinstance(name, str) or Path(name).name != name or name.endswith(".json"):
            raise ValueError(f"{index}: the shard {name!r} is not in the index's own folder, or is no file of weights")
        if not (index.parent / name).is_file():
            raise FileNotFoundError(f"{index.parent / name}: missing; {index.name} lists {len(files)} shards")
        shards[name] = open_state(index.parent / name, use_ema)
    absent = [name for name, file in weight_map.items() if name not in shards[file]]
    if absent:
        raise ValueError(f"{index.parent / weight_map[absent[0]]}: has no tensor {absent[0]!r}, "
                         f"which {index.name} says it has")
    return {name: shards[file][name] for name, file in weight_map.items()}


def _pick(content: Any, use_ema: bool) -> dict[str, StoredTensor]:
    """The state dict in what a torch file held, without the `module.` that wrappers put before names."""
    content = _as_dict(content)
    if use_ema and _as_dict(content.get("ema_state_dict")):
        content = content["ema_state_dict"]
    else:
        for key in ("state_dict", "gen_model", "model"):
            content = _as_dict(content.get(key)) or content
    tensors = {str(name): value for name, value in content.items() if isinstance(value, StoredTensor)}
    if tensors and all(name.startswith("module.") for name in tensors):
        tensors = {name[len("module."):]: value for name, value in tensors.items()}
    return tensors


def _as_dict(value: Any) -> dict:
    return value if isinstance(value, dict) else {}
