"""Shards of a latent cache: element types, order, and what is left of interrupted runs."""

from __future__ import annotations

import numpy as np
import pytest

from opensora.checkpoint.formats.safetensors import read_safetensors
from opensora.checkpoint.lazy_tensor import ArrayTensor
from opensora.datasets.latents import shards
from opensora.datasets.latents.shards import ShardWriter, complete_shards, exact_tensor, remove_incomplete


@pytest.mark.parametrize(
    "precision, values, dtype",
    [
        ("fp32", [1.0, 2.0], "F32"),
        ("fp16", [1.0, -(2.0**-10)], "F16"),
        ("bf16", [1.0, 2.0**127], "BF16"),
        ("fp16", [1.0, 1 + 2.0**-11], "F32"),
        ("fp16", [1.0, 3e38], "F32"),
        ("bf16", [1.0, 1 + 2.0**-8], "F32"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_values_are_stored_exactly(precision, values, dtype):
    values = np.array(values, np.float32)
    tensor = exact_tensor(values, precision)
    assert tensor.dtype == dtype and np.array_equal(tensor.numpy(), values)


def write(folder, rank: int, numbers) -> None:
    writer = ShardWriter(folder, shards.LATENTS, rank)
    for number in numbers:
        writer.add({"key": str(number)}, {".0": ArrayTensor(np.full(4, number, np.float32))})
    writer.flush()


def keys(folder) -> dict[str, list[str]]:
    found = complete_shards(folder, shards.LATENTS)
    return {shard.name: [entry["key"] for entry in shard.entries] for shard in found}


def test_shards_are_closed_by_size_and_numbered_by_rank(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 32)
    write(tmp_path, 0, range(5))
    write(tmp_path, 11, range(5, 7))
    names = [f"latents-{name}.safetensors" for name in ("0000-00000", "0000-00001", "0000-00002", "0011-00000")]
    assert keys(tmp_path) == dict(zip(names, (["0", "1"], ["2", "3"], ["4"], ["5", "6"])))
    tensors = read_safetensors(tmp_path / names[1])
    assert [float(tensors[name].numpy()[0]) for name in ("0.0", "1.0")] == [2, 3]


def test_incomplete_shards_are_removed_and_their_names_are_used_again(tmp_path, capfd):
    for number in range(4):
        write(tmp_path, 0, [number])
    paths = [tmp_path / f"latents-0000-{number:05d}.safetensors" for number in range(4)]
    paths[0].with_suffix(".json").unlink()
    paths[1].unlink()
    paths[2].write_bytes(paths[2].read_bytes()[:-1])
    (tmp_path / ".texts-0000-00000.01234567.part.safetensors").touch()
    remove_incomplete(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [paths[3].with_suffix(".json").name, paths[3].name]
    assert capfd.readouterr().err.count("missing or truncated; its entries are encoded again") == 2
    write(tmp_path, 0, [9])
    assert keys(tmp_path) == {paths[0].name: ["9"], paths[3].name: ["3"]}


def test_damaged_list_is_named(tmp_path):
    write(tmp_path, 0, [1])
    path = tmp_path / "latents-0000-00000.json"
    path.write_text("[]")
    with pytest.raises(ValueError, match=f"{path}: damaged; delete it and run opensora encode again"):
        complete_shards(tmp_path, shards.LATENTS)
