"""tools/make_full_size_release.py, with small configurations."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from processes import ROOT
from safetensors import safe_open
from tiny_models import DIT, TEXT, VAE

from opensora.checkpoint.files import open_state
from opensora.cli import full_size_release
from opensora.cli.full_size_release import BLOCK_SIZE, RepeatedNumbers, components, write_release
from opensora.config.commands import DEMO_MODEL
from opensora.models import MT5EncoderModel, OpenSoraT2V_v1_3, WFVAEModel
from opensora.models.text_encoder.tokenizer import Tokenizer

TRANSFORMER = "LanguageBind/Open-Sora-Plan-v1.3.0/any93x640x640"
AUTOENCODER = "LanguageBind/Open-Sora-Plan-v1.3.0/vae"
TEXT_ENCODER = "google/mt5-xxl"
TOKENIZER = DEMO_MODEL / "text_encoder"


def write(folder: Path, dtype: str = "bf16", seed: int = 0) -> Path:
    write_release(folder, components(dtype, DIT, VAE, TEXT), TOKENIZER, seed)
    return folder


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("release"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_layout(release):
    shards = [f"diffusion_pytorch_model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    assert sorted(contents(release)) == sorted(
        [
            *(f"{TRANSFORMER}/{name}" for name in [*shards, "config.json"]),
            f"{TRANSFORMER}/diffusion_pytorch_model.safetensors.index.json",
            f"{AUTOENCODER}/config.json",
            f"{AUTOENCODER}/diffusion_pytorch_model.safetensors",
            f"{TEXT_ENCODER}/config.json",
            f"{TEXT_ENCODER}/model.safetensors",
            f"{TEXT_ENCODER}/spiece.model",
        ]
    )
    sizes = [(release / TRANSFORMER / name).stat().st_size for name in shards]
    assert max(sizes) < 1.5 * min(sizes)
    assert Tokenizer(release / TEXT_ENCODER).count("a red circle") == 4


def test_names_and_shapes_are_those_of_the_models(release):
    for folder, model in (
        (TRANSFORMER, OpenSoraT2V_v1_3(**DIT)),
        (AUTOENCODER, WFVAEModel(**VAE)),
        (TEXT_ENCODER, MT5EncoderModel(**TEXT)),
    ):
        tied = set(model.aliases.values())
        expected = {name: value.shape for name, value in model.torch_state().items() if name not in tied}
        state = open_state(release / folder)
        assert {name: tensor.shape for name, tensor in state.items()} == expected
        kinds = {tensor.dtype for tensor in state.values()}
        assert kinds == ({"F32"} if folder == AUTOENCODER else {"BF16"})
    with safe_open(release / TEXT_ENCODER / "model.safetensors", "np") as file:  # the reference implementation
        assert file.get_slice("shared.weight").get_shape() == [300, 32]


def test_full_configurations():
    """Parameters of the published models."""
    counts = []
    for item in components():
        model = item.model.without_weights(**item.config)
        counts.append(sum(parameter.size for parameter in model.get_parameters()))
    assert counts == [2_771_981_600, 147_347_660, 5_655_173_120]


def test_text_encoder_is_sharded_above_five_gigabytes(monkeypatch, tmp_path):
    monkeypatch.setattr(full_size_release, "SHARD_BYTES", 30_000)
    folder = write(tmp_path) / TEXT_ENCODER
    shards = sorted(path.name for path in folder.glob("*.safetensors"))
    assert shards == [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    assert len(shards) > 1
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in open_state(folder).values())
    assert MT5EncoderModel.from_pretrained(folder).config.num_layers == TEXT["num_layers"]


def deviation(x) -> float:
    values = x.astype(ms.float32).asnumpy()
    assert np.isfinite(values).all()
    return float(values.std())


def test_models_keep_the_scale_of_their_inputs(release):
    text_encoder = MT5EncoderModel.from_pretrained(release / TEXT_ENCODER)
    ids = Tensor(np.arange(24, dtype=np.int32).reshape(2, 12))
    states = text_encoder(ids, Tensor(np.ones((2, 12), np.int32)))
    assert 0.5 < deviation(states) < 2

    rng = np.random.default_rng(0)
    transformer = OpenSoraT2V_v1_3.from_pretrained(release / TRANSFORMER)
    latents = Tensor(rng.standard_normal((2, 8, 2, 8, 8), np.float32))
    mask = Tensor(np.ones((2, 1, 12), np.int32))
    noise = transformer(latents, Tensor([500.0, 500.0], ms.float32), states.expand_dims(1), encoder_attention_mask=mask)
    assert 0.1 < deviation(noise) < 10

    autoencoder = WFVAEModel.from_pretrained(release / AUTOENCODER).set_train(False)
    assert 0.01 < deviation(autoencoder.decode(latents)) < 10


@pytest.mark.parametrize("dtype, kind", [("fp16", "F16"), ("fp32", "F32")])
def test_stored_types_hold_the_same_numbers(release, tmp_path, dtype, kind):
    other = write(tmp_path, dtype)
    for folder in (TRANSFORMER, TEXT_ENCODER):
        expected = open_state(release / folder)
        for name, tensor in open_state(other / folder).items():
            assert tensor.dtype == kind
            np.testing.assert_allclose(tensor.numpy(), expected[name].numpy(), rtol=2**-8, atol=1e-6)


def test_tensors_differ_from_each_other_and_have_the_wanted_deviation(release):
    seen = set()
    for folder in (TRANSFORMER, TEXT_ENCODER, AUTOENCODER):
        for name, tensor in open_state(release / folder).items():
            values = tensor.numpy()
            if "norm" in name and name.endswith("weight"):
                assert (values == 1).all()
            elif "wavelet" not in name:
                assert values.tobytes() not in seen, name
                seen.add(values.tobytes())
            if values.size > 2000 and name != "shared.weight" and "wavelet" not in name:
                fan_in = np.prod(values.shape[1:]) * (TEXT["d_kv"] if ".q.weight" in name and "Self" in name else 1)
                assert values.std() == pytest.approx(fan_in**-0.5, rel=0.1), name


def test_numbers_repeat_and_any_region_can_be_read():
    numbers = RepeatedNumbers(seed=3, mean=0.0, spread=2.0, dtype="F32")
    whole = np.frombuffer(numbers.read(0, 4 * (BLOCK_SIZE + 100)), np.float32)
    assert (whole[:100] == whole[BLOCK_SIZE:]).all()
    assert whole.std() == pytest.approx(2, rel=0.01)
    region = np.frombuffer(numbers.read(4 * (BLOCK_SIZE - 7), 4 * 20), np.float32)
    assert (region == whole[BLOCK_SIZE - 7 : BLOCK_SIZE + 13]).all()


def test_the_seed_determines_the_bytes(release, tmp_path):
    assert contents(write(tmp_path / "same")) == contents(release)
    other = contents(write(tmp_path / "other", seed=1))
    weights = [name for name in other if name.endswith(".safetensors")]
    assert len(weights) == 5 and all(other[name] != contents(release)[name] for name in weights)


def test_interrupted_run_is_resumed(release, tmp_path, monkeypatch):
    written = []

    def stop_at_third(path, *arguments, **settings):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path)
        original(path, *arguments, **settings)

    original = full_size_release.write_safetensors
    monkeypatch.setattr(full_size_release, "write_safetensors", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path)
    assert not list(tmp_path.rglob("config.json"))
    with pytest.raises(ValueError, match="holds several files of weights"):
        OpenSoraT2V_v1_3.from_pretrained(tmp_path / TRANSFORMER)
    times = [path.stat().st_mtime_ns for path in written]

    monkeypatch.setattr(full_size_release, "write_safetensors", original)
    with pytest.raises(ValueError, match="an interrupted run with other settings"):
        write(tmp_path, seed=1)
    write(tmp_path)
    assert [path.stat().st_mtime_ns for path in written] == times
    assert contents(tmp_path) == contents(release)


def test_killed_run_leaves_no_weights_that_look_complete(tmp_path):
    command = ["tools/make_full_size_release.py", "--layers", "1", "--text_layers", "1", "--output_dir", str(tmp_path)]
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT, stderr=subprocess.DEVNULL)
    while not list(tmp_path.rglob("[!.]*.safetensors")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list(tmp_path.rglob("config.json"))
    assert not (tmp_path / TEXT_ENCODER / "model.safetensors").exists()
    for path in tmp_path.rglob("[!.]*.safetensors"):
        with safe_open(path, "np") as file:
            assert file.keys()


def test_folder_with_other_files_is_refused(release):
    before = contents(release)
    with pytest.raises(ValueError, match=f"{release}: --output_dir is not empty"):
        write(release)
    assert contents(release) == before


def test_full_disk_is_reported_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(OSError, match="will be written, but 1e-06 GB are free; free some space or choose"):
        write(tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--layers", 0), "--layers must be 1 or more, not 0"),
        (("--tokenizer", "/nowhere"), "/nowhere: no such file or folder"),
        (("--tokenizer", DEMO_MODEL), f"{DEMO_MODEL} holds no tokenizer"),
    ],
)
def test_mistakes_are_reported_in_a_line(run, tmp_path, arguments, message):
    finished = run("tools/make_full_size_release.py", "--output_dir", tmp_path / "new", *arguments)
    assert finished.returncode == 1 and finished.stderr.splitlines()[-1].startswith(f"error: {message}")
    assert not (tmp_path / "new").exists()
