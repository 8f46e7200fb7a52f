"""The file formats of this project: for each one, how to write a small valid file and how to read it.

A new format is one more entry of `READERS`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Callable, NamedTuple

import numpy as np
from lora_files import make_adapter_config, make_kohya, make_lora, read_any_lora
from torch_files import save_legacy, save_zip, tensor


class Reader(NamedTuple):
    """`make(folder)` writes a valid file and returns its path; `read(path)` reads the complete file.

    Other files in the folder are not damaged.
    """

    make: Callable[[Path], Path]
    read: Callable[[Path], object]


def _arrays() -> dict:
    return {f"block.{i}.weight": np.arange(6, dtype=np.float32).reshape(2, 3) + i for i in range(4)}


def _make_torch(save: Callable) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        content = {name: tensor(array) for name, array in _arrays().items()}
        save(folder / "x.pt", {"state_dict": content, "epoch": 3, "lr": 0.1, "names": ["a", ("b", None, True)]})
        return folder / "x.pt"

    return make


def _make_safetensors(folder: Path) -> Path:
    from opensora.checkpoint.formats.safetensors import write_safetensors
    from opensora.checkpoint.lazy_tensor import ArrayTensor

    write_safetensors(folder / "x.safetensors", {name: ArrayTensor(array) for name, array in _arrays().items()})
    return folder / "x.safetensors"


def _make_gguf(folder: Path) -> Path:
    """Tensors of every type of block."""
    from opensora.checkpoint.formats.gguf import write_gguf
    from opensora.checkpoint.lazy_tensor import ArrayTensor, FileTensor
    from opensora.checkpoint.open_file import OpenFile
    from opensora.checkpoint.quantized import BLOCK_TYPES

    (folder / "blocks").write_bytes(bytes(range(256)))
    tensors = {name: ArrayTensor(array) for name, array in _arrays().items()}
    for dtype, (elements, _) in BLOCK_TYPES.items():
        tensors[dtype] = FileTensor(OpenFile(folder / "blocks"), 0, (1, elements), dtype)
    write_gguf(folder / "x.gguf", tensors, {"general.architecture": "t5", "general.name": "x", "eps": 0.5, "ok": True})
    return folder / "x.gguf"


def _make_gguf_vocabulary(folder: Path) -> Path:
    """A file of the package gguf with arrays of texts and numbers."""
    import gguf

    writer = gguf.GGUFWriter(folder / "x.gguf", "t5encoder")
    writer.add_token_list(["ab", "", "cde"])
    writer.add_token_scores([0.5, 1.0, 2.0])
    writer.add_array("nested", [[1, 2], [3]])
    for name, array in _arrays().items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "x.gguf"


def _make_float8(folder: Path) -> Path:
    """Scaled float8 and int8 weights."""
    tensors = {
        "scaled_fp8": ("F8_E4M3", np.zeros(0, np.uint8)),
        "a.weight": ("F8_E4M3", np.arange(64, dtype=np.uint8).reshape(1, 64)),
        "a.scale_weight": ("F32", np.float32([0.5])),
        "b.weight": ("I8", np.arange(64, dtype=np.int8).reshape(1, 64)),
        "b.weight_scale": ("F16", np.float16([[0.5, 2]])),
    }
    return write_stored(folder / "x.safetensors", tensors)


def write_stored(path: Path, tensors: Mapping[str, tuple[str, np.ndarray]]) -> Path:
    """Writes a safetensors file of types and stored numbers."""
    from opensora.checkpoint.formats.safetensors import write_safetensors
    from opensora.checkpoint.lazy_tensor import ArrayTensor

    write_safetensors(path, {name: ArrayTensor(array, dtype) for name, (dtype, array) in tensors.items()})
    return path


def _make_index(folder: Path) -> Path:
    shard = _make_safetensors(folder)
    index = folder / "model.safetensors.index.json"
    weight_map = {name: shard.name for name in _arrays()}
    index.write_text(json.dumps({"metadata": {"total_size": 96}, "weight_map": weight_map}))
    return index


def _make_mindspore(folder: Path) -> Path:
    """A checkpoint in the format of mindspore.save_checkpoint."""

    def field(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2, len(content)]) + content

    data = b""
    for name, array in _arrays().items():
        shape = b"".join(bytes([1 << 3, size]) for size in array.shape)
        data += field(1, field(1, name.encode()) + field(2, shape + field(2, b"Float32") + field(3, array.tobytes())))
    (folder / "x.ckpt").write_bytes(data)
    return folder / "x.ckpt"


def _make_config(folder: Path) -> Path:
    config = {
        "_class_name": "WFVAEModel",
        "latent_dim": 8,
        "base_channels": 128,
        "dropout": 0.0,
        "use_attention": True,
        "norm_type": "layernorm",
        "t_interpolation": "trilinear",
        "scale": [0.18215] * 8,
        "shift": [0.0] * 8,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return folder / "config.json"


def _read_state(path: Path) -> None:
    from opensora.checkpoint.files import open_state

    for value in open_state(path).values():
        value.numpy()
        for _ in value.iter_bytes():
            pass
        if len(value.shape) == 2 and value.shape[1] % 32 == 0:
            value.q8_0()


def _read_config(path: Path) -> None:
    from opensora.models import WFVAEModel

    WFVAEModel.published_config(path)


def _make_spiece(folder: Path) -> Path:
    """A vocabulary of 20 pieces, as sentencepiece trains it."""
    from tiny_models import train_sentencepiece

    return train_sentencepiece(folder, [a + b for a in "abcdefgh" for b in "aeiou"], 20)


def _read_tokenizer(path: Path) -> None:
    from opensora.models.text_encoder.tokenizer import Tokenizer

    Tokenizer(path.parent)(["ab ba"], 8)


def _make_image(suffix: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        from opensora.datasets.media import save_image

        rows = np.arange(24, dtype=np.uint8)
        image = np.stack([*np.meshgrid(rows, rows * 9, indexing="ij"), rows[:, None] * rows], -1)
        save_image(folder / f"x{suffix}", image)
        return folder / f"x{suffix}"

    return make


def _read_image(path: Path) -> None:
    from opensora.datasets.media import read_image

    read_image(path)


def _make_video(suffix: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        from opensora.datasets.media import write_video

        frames = np.random.default_rng(0).integers(0, 255, (6, 16, 16, 3), dtype=np.uint8)
        with write_video(folder / f"x{suffix}", 8) as write:
            write(frames)
        return folder / f"x{suffix}"

    return make


def _read_video(path: Path) -> None:
    from opensora.datasets.media import VideoReader

    with VideoReader(path) as reader:
        reader.check()
        reader.read(list(range(len(reader))))


def _make_text(name: str, text: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_text(text, encoding="utf-8")
        return folder / name

    return make


CAPTIONS = json.dumps(
    [
        {
            "path": f"{i}.mp4",
            "cap": ["a cat", "a dog"],
            "num_frames": 30,
            "fps": 24.0,
            "resolution": {"height": 64, "width": 96},
            "aesthetic": 5.5,
        }
        for i in range(4)
    ],
    indent=1,
)


def _read_annotations(path: Path) -> None:
    from opensora.datasets.t2v.annotations import read_items

    list(read_items(path))


def _read_captions(path: Path) -> None:
    from opensora.sample.embedding_files import read_captions

    read_captions(path, path.parent)


def _read_data_file(path: Path) -> None:
    from opensora.datasets.t2v.annotations import read_data_file

    read_data_file(path)


def _make_data_file(folder: Path) -> Path:
    _make_text("annotation.json", CAPTIONS)(folder)
    lines = f"videos,{folder}/annotation.json\nvideos,embeddings,{folder}/annotation.json\n"
    return _make_text("data.txt", lines)(folder)


def _read_prompts(path: Path) -> None:
    from opensora.sample.prompt_files import read_prompts

    read_prompts([str(path)])


def _read_table(path: Path) -> None:
    from opensora.datasets.bucketed.table import read_table

    read_table(path, sizes=True)


def _read_flags(path: Path) -> None:
    from opensora.config.command_line import parse_with_config

    parser = argparse.ArgumentParser()
    parser.add_argument("--width", type=int)
    parser.add_argument("--fps", type=float)
    parser.add_argument("--prompt", nargs="+")
    parser.add_argument("--tiling", action="store_true")
    parse_with_config(parser, ["--config", str(path)])


def _read_mask_ratios(path: Path) -> None:
    from opensora.datasets.masks import MaskConfig

    MaskConfig.from_file(path)


def _make_latents(folder: Path) -> Path:
    np.save(folder / "x.npy", np.zeros((1, 8, 2, 4, 4), np.float32))
    return folder / "x.npy"


def _read_latents(path: Path) -> None:
    from opensora.sample.outputs import read_latents

    read_latents(path)


def _read_training_log(path: Path) -> None:
    from opensora.train.log import Table

    Table(path, 4)


def _read_results(path: Path) -> None:
    from opensora.pipelines.reconstruct_folder import Results

    Results(path.parent, {"fps": 8})


def _make_state(folder: Path) -> Path:
    """The state.json of a checkpoint; its other files remain intact."""
    from opensora.train.checkpoint import save_checkpoint

    save_checkpoint(folder, 4, {}, {"sampler": {"epoch": 0}}, None, True)
    return folder / "checkpoint-4/state.json"


def _read_state_json(path: Path) -> None:
    from opensora.train.checkpoint_folder import find_checkpoint

    find_checkpoint(path.parents[1], "latest")


READERS = {
    "torch zip": Reader(_make_torch(save_zip), _read_state),
    "torch legacy": Reader(_make_torch(save_legacy), _read_state),
    "safetensors": Reader(_make_safetensors, _read_state),
    "gguf": Reader(_make_gguf, _read_state),
    "gguf vocabulary": Reader(_make_gguf_vocabulary, _read_state),
    "scaled float8": Reader(_make_float8, _read_state),
    "index.json": Reader(_make_index, _read_state),
    "mindspore": Reader(_make_mindspore, _read_state),
    "lora": Reader(make_lora, read_any_lora),
    "lora of kohya": Reader(make_kohya, read_any_lora),
    "adapter_config.json": Reader(make_adapter_config, read_any_lora),
    "config.json": Reader(_make_config, _read_config),
    "spiece.model": Reader(_make_spiece, _read_tokenizer),
    **{suffix: Reader(_make_image(suffix), _read_image) for suffix in (".png", ".jpg")},
    **{suffix: Reader(_make_video(suffix), _read_video) for suffix in (".mp4", ".gif")},
    "annotations": Reader(_make_text("x.json", CAPTIONS), _read_annotations),
    "data file": Reader(_make_data_file, _read_data_file),
    "captions": Reader(_make_text("x.json", CAPTIONS), _read_captions),
    "prompts.txt": Reader(_make_text("x.txt", 'a cat\na dög, "red"\n\nfog over the sea\n'), _read_prompts),
    "prompts.csv": Reader(_make_text("x.csv", 'id,prompt\n1,a cat\n2,"a dog, red"\n'), _read_prompts),
    "video table": Reader(
        _make_text(
            "x.csv",
            'path,text,num_frames,height,width,fps\na.mp4,a cat,30,64,96,24.0\nb.mp4,"a dog, red",40,64,64,25\n',
        ),
        _read_table,
    ),
    "train_log.csv": Reader(
        _make_text("train_log.csv", "step,loss,grad_norm\n1,0.5,1.25\n2,0.25,\n3,0.125,2.0\n"), _read_training_log
    ),
    "flags.yaml": Reader(
        _make_text("x.yaml", "width: 640\nfps: 24.5\nprompt: [a cat, a dog]\ntiling: true\n"), _read_flags
    ),
    "mask_config.yaml": Reader(
        _make_text("x.yaml", "mask_type_ratio_dict_video: {t2iv: 1, i2v: 2}\nmin_clear_ratio: 0.25\n"),
        _read_mask_ratios,
    ),
    "latents": Reader(_make_latents, _read_latents),
    "state.json": Reader(_make_state, _read_state_json),
    "results": Reader(
        _make_text(
            "reconstruction.json",
            json.dumps({"settings": {"fps": 8}, "videos": {"a.mp4": {"psnr": 30.5, "ssim": 0.9}}}, indent=1),
        ),
        _read_results,
    ),
}
