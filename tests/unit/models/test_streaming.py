"""Models whose blocks are read from the file while they compute."""

from __future__ import annotations

import gc
import threading
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from processes import slow
from stored_models import KINDS, STREAMABLE, drawn_state, outputs, same, write_model

from opensora.checkpoint.formats.safetensors import write_safetensors
from opensora.checkpoint.lazy_tensor import ArrayTensor
from opensora.errors import UserError
from opensora.models.pretrained import PretrainedModel
from opensora.models.stored_weights import WeightLoader


@pytest.fixture(scope="module", params=[name if name in ("mt5", "dit", "latte") else slow(name) for name in STREAMABLE])
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def path(name, tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp(name), name, "BF16")


def stream(name: str, path: Path, **options) -> PretrainedModel:
    return KINDS[name].model.from_pretrained(path, streamed=True, **options)


def blocks_of(model: PretrainedModel):
    return getattr(model, "encoder", model).blocks_to_run


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("weights")]


def held_bytes(model: PretrainedModel) -> int:
    """Of the blocks' weights: the parameter of an unloaded weight repeats one number."""
    total = 0
    for key, parameter in model.parameters_and_names():
        if key in model.unloaded and parameter.is_contiguous():
            total += parameter.nbytes
    return total


@pytest.mark.parametrize("weights", ["as_stored", "q8_0"])
def test_two_blocks_are_held_at_most(name, path, weights, monkeypatch):
    model = stream(name, path, weights=weights)
    assert model.is_streamed and held_bytes(model) == 0
    blocks, most, count = set(), 0, 0
    read, release = WeightLoader.read, WeightLoader.release

    def noted_read(self, key, *arguments, **options):
        nonlocal most, count
        blocks.add(model.block_of(key))
        most, count = max(most, len(blocks)), count + 1
        return read(self, key, *arguments, **options)

    def noted_release(self, key):
        blocks.discard(model.block_of(key))
        release(self, key)

    monkeypatch.setattr(WeightLoader, "read", noted_read)
    monkeypatch.setattr(WeightLoader, "release", noted_release)
    first = outputs(name, model)
    assert blocks == set() and readers() == [] and held_bytes(model) == 0
    assert most == 2 and count == sum(map(len, blocks_of(model).tensors))
    assert same(outputs(name, model), first)
    assert most == 2 and count == 2 * sum(map(len, blocks_of(model).tensors))


def test_failed_pass_leaves_the_model_usable(name, path, monkeypatch):
    model = stream(name, path)
    expected = outputs(name, model)
    block = blocks_of(model).blocks[1]
    construct = type(block).construct

    def fail(self, *arguments, **options):
        if self is block:
            raise RuntimeError("out of memory")
        return construct(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(type(block), "construct", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            outputs(name, model)
    assert readers() == [] and held_bytes(model) == 0
    assert same(outputs(name, model), expected)


def test_abandoned_pass_is_cleaned_up(name, path):
    model = stream(name, path)
    for block in blocks_of(model):  # noqa: B007
        assert held_bytes(model) > 0 and len(readers()) == 1
        break
    del block
    gc.collect()
    assert readers() == [] and held_bytes(model) == 0
    for index, block in enumerate(blocks_of(model)):
        assert block is blocks_of(model).blocks[index]
    assert index == len(blocks_of(model)) - 1 and readers() == []


@pytest.mark.parametrize("stored", ["BF16", "I8"])
@pytest.mark.parametrize("kept", [0.7, 0.01])
def test_file_that_was_truncated_after_it_was_opened(name, stored, kept, tmp_path):
    """BF16 is mapped, where an access after the end would end the process; I8 with scales is read."""
    path = write_model(tmp_path, name, stored)
    model = stream(name, path)
    expected = outputs(name, model)
    content = path.read_bytes()
    with open(path, "r+b") as file:
        file.truncate(int(len(content) * kept))
    with pytest.raises(UserError) as caught:
        outputs(name, model)
    assert str(caught.value) == f"{path}: the file is truncated; download or copy the file again"
    assert readers() == [] and held_bytes(model) == 0
    with open(path, "r+b") as file:
        file.write(content)
    assert same(outputs(name, model), expected)


def test_nan_is_reported_once(name, tmp_path, capsys):
    state = drawn_state(name)
    broken = f"{KINDS[name].model.block_list}.1."
    key = next(key for key in state if key.startswith(broken) and state[key].ndim == 2)
    state[key][0, 0] = np.nan
    write_safetensors(tmp_path / "x.safetensors", {key: ArrayTensor(value) for key, value in state.items()})
    KINDS[name].model.without_weights(**KINDS[name].config).save_config(tmp_path)
    model = stream(name, tmp_path / "x.safetensors")
    capsys.readouterr()
    for _ in range(2):
        assert any(np.isnan(array).any() for array in outputs(name, model))
    (line,) = capsys.readouterr().err.splitlines()
    assert f"x.safetensors: 1 tensors hold NaN or infinity ({key}): the model's output will be NaN" in line


def test_text_states_read_their_layers_only(path, name, monkeypatch):
    if name not in ("dit", "inpaint", "opensora_v1_2", "latte"):
        pytest.skip("has no text states")
    model, loaded = stream(name, path), KINDS[name].model.from_pretrained(path, weights="as_stored")
    keys: list[str] = []
    read = WeightLoader.read

    def noted_read(self, key, *arguments, **options):
        keys.append(key)
        return read(self, key, *arguments, **options)

    monkeypatch.setattr(WeightLoader, "read", noted_read)
    text = ms.Tensor(np.random.RandomState(0).standard_normal((1, 1, 6, 32)).astype(np.float32))
    for found, expected in zip(model.text_states(text), loaded.text_states(text)):
        assert all(np.array_equal(one.asnumpy(), other.asnumpy()) for one, other in zip(found, expected))
    assert len(keys) == 4 * model.config.num_layers and all(".attn2.to_k." in k or ".attn2.to_v." in k for k in keys)
    assert held_bytes(model) == 0 and readers() == []


def test_graph_mode_is_refused(name, path):
    ms.set_context(mode=ms.GRAPH_MODE)
    try:
        with pytest.raises(UserError) as caught:
            stream(name, path)
    finally:
        ms.set_context(mode=ms.PYNATIVE_MODE)
    text = str(caught.value)
    assert text == f"{path}: blocks are read from the file in PyNative mode only: use --mode 1, or more --memory"


MEASURED = """
import sys
from pathlib import Path
import mindspore as ms
import numpy as np
from opensora.models import MT5EncoderModel

def memory(field):
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith(field))

path, weights = sys.argv[1:]
ids = ms.Tensor(np.arange(4, dtype=np.int32)[None])
before = memory("VmRSS")
model = MT5EncoderModel.from_pretrained(path, weights=weights, streamed=True).set_train(False)
(states,) = model.encode([(ids, ms.ops.ones_like(ids))])
assert np.isfinite(states.asnumpy()).all()
print(memory("VmHWM") - before)
"""


@pytest.mark.parametrize("weights, share", [("as_stored", 0.45), ("q8_0", 0.3)])
def test_memory_of_a_wide_model(weights, share, tmp_path, run):
    """Eight blocks; two of them are in memory, as the file has them, or in a quarter of that and the temporaries."""
    config = dict(vocab_size=8, d_model=1024, d_kv=64, d_ff=3072, num_layers=8, num_heads=16)
    model = KINDS["mt5"].model.without_weights(**config, feed_forward_proj="gated-gelu")
    numbers = np.random.RandomState(0).standard_normal(1024 * 3072).astype(np.float32) / 64
    shapes = {key: parameter.shape for key, parameter in model.parameters_and_names()}
    tensors = {key: ArrayTensor(numbers[: np.prod(shape)].reshape(shape)) for key, shape in shapes.items()}
    write_safetensors(tmp_path / "x.safetensors", tensors)
    model.save_config(tmp_path)
    size = (tmp_path / "x.safetensors").stat().st_size
    assert size > 400e6
    finished = run("-c", MEASURED, tmp_path / "x.safetensors", weights)
    assert finished.returncode == 0, finished.stderr
    print(f"{weights}: {int(finished.stdout) / 1e6:.0f} MB of {size / 1e6:.0f} MB")
    assert int(finished.stdout) < share * size


def test_streamed_weights_cannot_be_replaced(name, path):
    model = stream(name, path)
    for change in (lambda: model.load_torch_state(model.torch_state()), lambda: model.cast(ms.float16)):
        with pytest.raises(UserError, match="reads weights from its file while it computes: load it without"):
            change()


def test_stored_weights_cannot_be_cast(tmp_path):
    model = KINDS["dit"].model.from_pretrained(write_model(tmp_path, "dit", "BF16"), weights="as_stored")
    with pytest.raises(UserError, match="computes in another dtype than its weights have"):
        model.cast(ms.float16)
