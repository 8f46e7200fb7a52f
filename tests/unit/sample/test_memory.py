"""--memory and --weights of sample.py and opensora embed."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
import yaml
from golden_cases import relative_difference
from processes import msrun
from tiny_models import DIT, TEXT, make_release

from opensora.cli import convert, embed, sample
from opensora.models import MT5EncoderModel, OpenSoraT2V_v1_3
from opensora.sample.options import parse_options

SAMPLE = "opensora/sample/sample.py"
EMBED = "opensora/sample/sample_text_embed.py"
STEM = "EulerAncestralDiscrete_0_gs7.5_s2"


@pytest.fixture(scope="module")
def wide_release(tmp_path_factory) -> Path:
    """A release whose text encoder and transformer have 200 MB each, in few wide layers."""
    folder = make_release(tmp_path_factory.mktemp("wide"))
    text = {**TEXT, "d_model": 1024, "d_kv": 256, "d_ff": 2048, "num_layers": 5}
    transformer = {**DIT, "attention_head_dim": 192, "num_layers": 5, "cross_attention_dim": 768}
    MT5EncoderModel(**text, model_type="mt5").save_pretrained(folder / "text")
    OpenSoraT2V_v1_3(**{**transformer, "caption_channels": 1024}).save_pretrained(folder / "transformer")
    return folder


def changed(flags: list[str], **values) -> list[str]:
    """The flags, some of them with other values or new."""
    return [*flags, *(str(word) for name, value in values.items() for word in (f"--{name}", value))]


def latents(flags: list[str], folder: Path) -> np.ndarray:
    """Runs sample.py in this process; the latents of its only result."""
    sample.main([*flags, "--text_prompt", "a", "--save_latents", "--save_img_path", str(folder)])
    return np.load(folder / f"{STEM}.npy")


def as_gguf(source: Path, target: Path, precision: str = "q8_0") -> Path:
    """A folder with a model's weights as GGUF, its config.json, and its tokenizer if it has one."""
    target.mkdir()
    for file in source.glob("*.json"):
        shutil.copy(file, target)
    weights = source / "diffusion_pytorch_model.safetensors"
    words = ["--src", weights, "--target", target / "model.gguf", "--config", source / "config.json"]
    convert.main([*map(str, words), "--to", precision, "--format", "gguf"])
    return target


def record(folder: Path) -> dict:
    return json.loads((folder / f"{STEM}.json").read_text())


def test_text_encoder_may_be_a_gguf_file(release, flags, tmp_path):
    text = as_gguf(release / "text", tmp_path / "text")
    from_gguf = latents(changed(flags, text_encoder_name_1=text), tmp_path / "gguf")
    assert record(tmp_path / "gguf")["device"]["weights"] == {"text_encoder": "as_stored", "transformer": "as_stored"}
    assert 0 < relative_difference(from_gguf, latents(flags, tmp_path / "default")) < 0.02

    MT5EncoderModel.from_pretrained(text).save_pretrained(tmp_path / "widened")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(text / name, tmp_path / "widened")
    widened = latents(changed(flags, text_encoder_name_1=tmp_path / "widened"), tmp_path / "from_widened")
    flags = changed(flags, text_encoder_name_1=text, weights="text_encoder=fp32")
    assert (latents(flags, tmp_path / "fp32") == widened).all()


def test_gguf_of_another_model_is_rejected(release, flags, tmp_path, run):
    folder = as_gguf(release / "transformer", tmp_path / "mixed")
    shutil.copy(release / "text/config.json", folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(release / "text" / name, folder)
    with pytest.raises(ValueError, match="model.gguf: .*fit"):
        latents(changed(flags, text_encoder_name_1=folder), tmp_path / "out")

    writer = gguf.GGUFWriter(folder / "model.gguf", "llama")
    writer.add_block_count(1)
    writer.add_tensor("token_embd.weight", np.zeros((8, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    finished = run(SAMPLE, *changed(flags, text_encoder_name_1=folder, text_prompt="a"))
    assert finished.returncode == 1 and "Traceback" not in finished.stderr
    assert finished.stderr.splitlines()[-1].startswith(f"error: {folder}/model.gguf: ")
    assert "llama" in finished.stderr.splitlines()[-1]


def test_published_name_comes_before_gguf(release, flags, tmp_path):
    """Of several files in a folder the one with a published name is read; of others there must be one of a kind."""
    text = as_gguf(release / "text", tmp_path / "text")
    shutil.copy(release / "text/diffusion_pytorch_model.safetensors", text / "model.safetensors")
    both = latents(changed(flags, text_encoder_name_1=text), tmp_path / "both")
    assert (both == latents(flags, tmp_path / "default")).all()
    (text / "model.safetensors").unlink()
    shutil.copy(text / "model.gguf", text / "other.gguf")
    with pytest.raises(
        ValueError, match=r"text holds several files of weights .model.gguf, other.gguf.; give the path of one"
    ):
        latents(changed(flags, text_encoder_name_1=text), tmp_path / "two")


def test_weights_are_held_in_the_given_format(flags, tmp_path):
    held = {
        "q8_0": {"text_encoder": "q8_0", "transformer": "q8_0"},
        "transformer=bf16": {"text_encoder": "as_stored", "transformer": "bf16"},
    }
    default = latents(flags, tmp_path / "default")
    for weights, expected in held.items():
        found = latents(changed(flags, weights=weights), tmp_path / weights)
        assert 0 < relative_difference(found, default) < 0.05
        assert record(tmp_path / weights)["device"]["weights"] == expected


@pytest.mark.parametrize(
    "values, message",
    [
        (
            {"weights": "int4"},
            "--weights 'int4': give one of as_stored, fp32, bf16, fp16, q8_0 for all models, or MODEL",
        ),
        ({"weights": "unet=q8_0"}, "--weights 'unet=q8_0': .*one of text_encoder, transformer, vae"),
        ({"memory": "8 bananas"}, "'8 bananas' is not a size of memory; write it as 8GB"),
        ({"memory": "0"}, "'0' is not a size of memory"),
    ],
)
def test_wrong_values_are_rejected(flags, values, message, capsys):
    with pytest.raises((ValueError, SystemExit)) as error:
        parse_options(changed(flags, text_prompt="a", **values))
    assert re.search(message, f"{error.value} {capsys.readouterr().err}")


@pytest.mark.parametrize("text", ["'2GB'", "2000000000", "2.0e+9"])
def test_memory_in_a_config_file(flags, tmp_path, text):
    (tmp_path / "run.yaml").write_text(f"memory: {text}\nweights: [q8_0, transformer=bf16]\ntext_prompt: a\n")
    options, _ = parse_options(changed(flags, config=tmp_path / "run.yaml"))
    assert options.memory == 2e9
    assert dict(options.held_weights()) == {"text_encoder": "q8_0", "transformer": "bf16", "vae": "q8_0"}


@pytest.mark.parametrize("values", [{"memory": "much"}, {"memory": [1]}, {"weights": "int4"}, {"memory": 0}])
def test_wrong_values_in_a_config_file_are_rejected(flags, tmp_path, values):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"text_prompt": "a", **values}))
    with pytest.raises(ValueError, match=f"{next(iter(values))}"):
        parse_options(changed(flags, config=tmp_path / "run.yaml"))


def test_results_of_other_weights_are_not_mixed(flags, tmp_path):
    first = latents(flags, tmp_path / "out")
    with pytest.raises(ValueError, match=r"was made with weights \[\], not \['q8_0'\]: choose another"):
        latents(changed(flags, weights="q8_0"), tmp_path / "out")
    made = record(tmp_path / "out")
    for name in ("weights", "memory", "text_encoder_device"):  # an earlier version had none of them
        del made["arguments"][name]
    (tmp_path / "out" / f"{STEM}.json").write_text(json.dumps(made))
    assert (latents(changed(flags, memory="4GB"), tmp_path / "out") == first).all()
    with pytest.raises(ValueError, match="was made with weights"):
        latents(changed(flags, weights="q8_0"), tmp_path / "out")


@pytest.fixture
def wide_flags(wide_release, flags) -> list[str]:
    """The flags of a run with the wide release, without a choice of 8 bits."""
    folders = {"model_path": wide_release / "transformer", "text_encoder_name_1": wide_release / "text"}
    return [*changed(flags, **folders, text_prompt="a", weights="as_stored"), "--save_latents"]


def found_in(text: str, *patterns: str) -> list[float]:
    """The numbers that the groups of the patterns match."""
    matches = [re.search(pattern, text) for pattern in patterns]
    assert all(matches), text
    return [float(match[1]) for match in matches if match]


def test_streamed_run_equals_a_loaded_one(wide_flags, tmp_path, run):
    """The size that the refusal names is enough, and the plan's peak is close to that of the process."""
    finished = run(SAMPLE, *changed(wide_flags, memory="0.3GB"))
    last = finished.stderr.splitlines()[-1]
    assert finished.returncode == 1 and last.startswith("error: --memory 0.3GB: 5x32x64 needs ")
    (least,) = found_in(last, r"give --memory (\S+)GB$")
    results = []
    for memory, words in ((least, "weights streamed"), (8.0, "no model is released")):
        folder = tmp_path / str(memory)
        finished = run(SAMPLE, *changed(wide_flags, memory=f"{memory}GB", save_img_path=folder))
        assert finished.returncode == 0, finished.stderr
        assert words in finished.stderr
        planned, measured = found_in(finished.stderr, r"planned peak (\S+) GB", r"peak memory (\S+) GB")
        print(memory, planned, measured)
        assert measured <= 1.05 * planned and planned <= 1.15 * measured and measured <= memory
        results.append(np.load(folder / f"{STEM}.npy").tobytes())
    assert results[0] == results[1]


def test_graph_mode_does_not_stream(wide_flags, run):
    finished = run(SAMPLE, *changed(wide_flags, memory="0.8GB", mode=0))
    last = finished.stderr.splitlines()[-1]
    assert finished.returncode == 1 and last.startswith("error: --memory 0.8GB: 5x32x64 needs ")
    assert "use --mode 1, which can read blocks from the file, or give --memory" in last


@pytest.mark.slow
def test_ranks_have_one_plan(wide_flags, tmp_path):
    """Ranks with different plans would wait for each other in different stages."""
    results = []
    for memory, words in (("0.9GB", "transformer: F32 weights streamed"), ("8GB", "no model is released")):
        more = changed(wide_flags, memory=memory, sp_size=2, use_parallel=True, save_img_path=tmp_path / memory)
        finished, logs = msrun(2, tmp_path / f"{memory}_logs", SAMPLE, *more)
        assert finished.returncode == 0, finished.stdout + finished.stderr
        assert words in logs[0] and "planned peak" not in logs[1]
        results.append(np.load(tmp_path / memory / f"{STEM}.npy").tobytes())
    assert results[0] == results[1]


@pytest.fixture
def embed_flags(tmp_path) -> list[str]:
    entries = [{"path": "x.mp4", "cap": "one"}, {"path": "y.jpg", "cap": ["two", "three"]}]
    (tmp_path / "caption.json").write_text(json.dumps(entries))
    return f"--data_file_path {tmp_path}/caption.json --model_max_length 16 --batch_size 2 --device CPU".split()


def embeddings(folder: Path) -> dict[str, bytes]:
    """The arrays of embeddings by name, without their origins."""
    return {
        path.name: b"".join(np.load(path)[name].tobytes() for name in ("states", "mask"))
        for path in folder.rglob("*.npz")
    }


def test_embed_streams_what_does_not_fit(wide_release, embed_flags, tmp_path, run):
    """In processes of their own: the budget counts the memory that a process has already."""

    def embedded(**changes):
        return run(EMBED, *changed(embed_flags, text_encoder_name=wide_release / "text", **changes))

    refused = embedded(output_path=tmp_path / "none", memory="0.1GB")
    last = refused.stderr.splitlines()[-1]
    assert refused.returncode == 1
    assert re.match(r"error: --memory 0.1GB: a batch of 2 texts of 16 tokens needs \S+ GB .*; give", last), last
    printed = embedded(output_path=tmp_path / "streamed", memory=last.split()[-1]).stderr
    assert "memory: text encoder: F32 weights streamed" in printed and "loaded;" not in printed
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "streamed").rglob("*.npz")}
    again = embedded(output_path=tmp_path / "streamed")  # the same embeddings, loaded: nothing is left to do
    assert again.returncode == 0 and "memory:" not in again.stderr
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "streamed").rglob("*.npz")}
    assert embedded(output_path=tmp_path / "loaded").returncode == 0
    assert embeddings(tmp_path / "streamed") == embeddings(tmp_path / "loaded") != {}


def test_embed_holds_weights_in_the_given_format(release, embed_flags, tmp_path):
    flags = changed(embed_flags, text_encoder_name=release / "text")
    for name, weights in (("default", "as_stored"), ("fp32", "text_encoder=fp32"), ("q8_0", "q8_0")):
        embed.main(changed(flags, output_path=tmp_path / name, weights=weights))
    default, fp32, quantized = (embeddings(tmp_path / name) for name in ("default", "fp32", "q8_0"))
    assert default == fp32 and default.keys() == quantized.keys() and default != quantized
    for weights in ("transformer=q8_0", "vae=bf16", "int4"):
        with pytest.raises(ValueError, match=f"--weights '{weights}': the text encoder's weights are one of as_stored"):
            embed.main(changed(flags, output_path=tmp_path / "none", weights=weights))
