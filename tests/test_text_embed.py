"""Captions embedded to disk."""
from __future__ import annotations

import json

import numpy as np
import pytest
from tiny_models import make_release

from opensora.datasets.text_embeddings import EMPTY_TEXT, load_embedding
from opensora.models import MT5EncoderModel
from opensora.models.text_encoder.tokenizer import Tokenizer
from opensora.pipelines.text import embed_text
from opensora.sample.embedding_files import read_captions

TOOL = "opensora/sample/sample_text_embed.py"


@pytest.fixture(scope="module")
def text_encoder(tmp_path_factory):
    return make_release(tmp_path_factory.mktemp("release")) / "text"


def test_captions_are_embedded_once(run, text_encoder, tmp_path):
    entries = [{"path": "a/x.mp4", "cap": "one"}, {"path": "y.jpg", "cap": ["two", "Three  words (here)"]}]
    (tmp_path / "caption.json").write_text(json.dumps(entries))
    arguments = [TOOL, "--data_file_path", tmp_path / "caption.json", "--output_path", tmp_path / "out",
                 "--text_encoder_name", text_encoder, "--model_max_length", 16, "--batch_size", 2, "--device", "CPU"]
    finished = run(*arguments)
    assert finished.returncode == 0, finished.stderr
    files = {"a/x.npz": "one", "y_0.npz": "two", "y_1.npz": "three words here", EMPTY_TEXT: ""}
    assert sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.npz")) == sorted(files)
    encoder, tokenizer = MT5EncoderModel.from_pretrained(text_encoder).set_train(False), Tokenizer(text_encoder)
    for name, text in files.items():
        (states, mask), direct = load_embedding(tmp_path / "out" / name), embed_text(encoder, tokenizer, [text], 16)
        assert (mask == direct.mask).all() and states.shape == direct.states.shape
        assert np.allclose(states, direct.states * direct.mask[..., None], atol=1e-5)

    times = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in files}
    (tmp_path / "out/y_1.npz").unlink()
    assert run(*arguments).returncode == 0
    assert (tmp_path / "out/y_1.npz").exists()
    assert all((tmp_path / "out" / name).stat().st_mtime_ns == times[name] for name in files if name != "y_1.npz")


@pytest.mark.parametrize("content, message", [
    ("{", "not a json file"), ("{}", "should hold a list"), ('[{"path": "a.mp4"}]', "entry 0 has no"),
    ('[{"path": "../a.mp4", "cap": "x"}]', "leads out")])
def test_bad_annotations(tmp_path, content, message):
    (tmp_path / "caption.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_captions(tmp_path / "caption.json", tmp_path)


def test_a_damaged_embedding_is_named(tmp_path):
    (tmp_path / "x.npz").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(ValueError, match="x.npz: not a text embedding"):
        load_embedding(tmp_path / "x.npz")
