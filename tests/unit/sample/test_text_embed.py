"""Precomputed caption embeddings."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tiny_models import make_release

from opensora.datasets.t2v.text_embeddings import EMPTY_TEXT, embedding_name, load_embedding, save_embedding
from opensora.models import MT5EncoderModel
from opensora.models.text_encoder.tokenizer import Tokenizer
from opensora.pipelines.text import embed_text
from opensora.sample.embedding_files import embed_captions, read_captions

TOOL = "opensora/sample/sample_text_embed.py"


@pytest.fixture(scope="module")
def text_encoder(tmp_path_factory):
    return make_release(tmp_path_factory.mktemp("release")) / "text"


def test_captions_are_embedded_once(run, text_encoder, tmp_path):
    entries = [{"path": "a/x.mp4", "cap": "one"}, {"path": "y.jpg", "cap": ["two", "Three  words (here)"]}]
    (tmp_path / "caption.json").write_text(json.dumps(entries))
    arguments = (
        f"{TOOL} --data_file_path {tmp_path}/caption.json --output_path {tmp_path}/out "
        f"--text_encoder_name {text_encoder} --model_max_length 16 --batch_size 2 --device CPU"
    ).split()
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


@pytest.fixture(scope="module")
def models(text_encoder):
    return MT5EncoderModel.from_pretrained(text_encoder).set_train(False), Tokenizer(text_encoder)


def embed(folder, entries, models, max_length=16) -> list:
    """Embeds the captions of `entries` into `folder`; returns the captions without the empty text."""
    (folder / "caption.json").write_text("\n".join(map(json.dumps, entries)))  # one object per line
    captions = read_captions(folder / "caption.json", folder)
    embed_captions(captions, *models, max_length, 8)
    return captions[1:]


def contains(file, text, models, max_length=16) -> bool:
    (states, mask), direct = load_embedding(file), embed_text(*models, [text], max_length)
    return np.array_equal(mask, direct.mask) and np.allclose(states, direct.states * direct.mask[..., None], atol=1e-5)


def test_embedding_does_not_depend_on_its_batch(models, tmp_path):
    """A resumed run, which has other batches, gives the same numbers."""
    texts = ["one", "a longer caption that has more than sixty-four tokens, because each of them is a byte", "three"]
    entries = [{"path": f"{i}.mp4", "cap": text} for i, text in enumerate(texts)]
    captions = embed(tmp_path, entries, models, 128)
    together = [np.load(caption.file)["states"] for caption in captions]
    assert [len(states) for states in together] == [4, 86, 6]
    for caption, states, entry in zip(captions, together, entries):
        caption.file.unlink()
        embed(tmp_path, [entry], models, 128)
        assert np.load(caption.file)["states"].tobytes() == states.tobytes()


@pytest.mark.parametrize(
    "entries, names",
    [
        (
            [("film.mp4", "one", [0, 48]), ("film.mp4", "two", [48, 96]), ("film.mp4", "three", [96, 99])],
            ["film.npz", "film.mp4.npz", "film.mp4@"],
        ),
        ([("a.mp4", "one"), ("a.jpg", "two"), ("a.PNG", "three")], ["a.npz", "a.jpg.npz", "a.PNG.npz"]),
        ([("b/a_0.mp4", "one"), ("b/a.mp4", ["two", "three"])], ["b/a_0.npz", "b/a.mp4#0.npz", "b/a_1.npz"]),
        (
            [("a.mp4", {"short": "one", "long": "two"}), ("_empty.mp4", "three")],
            ["a_0.npz", "a_1.npz", "_empty.mp4.npz"],
        ),
    ],
)
def test_each_caption_has_its_own_file(models, tmp_path, entries, names):
    entries = [dict(zip(("path", "cap", "cut"), entry)) for entry in entries]
    captions = embed(tmp_path, entries, models)
    assert [caption.text for caption in captions] == ["one", "two", "three"]
    for caption, name in zip(captions, names):
        assert str(caption.file.relative_to(tmp_path)).startswith(name)
        assert contains(caption.file, caption.text, models)
    for entry in entries:
        cap = entry["cap"]
        texts = list(cap.values()) if isinstance(cap, dict) else cap
        number, first = (None, cap) if isinstance(cap, str) else (0, texts[0])
        if "cut" not in entry:  # otherwise the name depends on the caption
            assert contains(tmp_path / embedding_name(entry["path"], number), first, models)


def test_outdated_embeddings_are_replaced(models, text_encoder, tmp_path):
    """A corrected caption, another length and other weights each replace only the affected files."""

    def changed() -> set:
        times = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.npz")}
        embed(tmp_path, entries, models, length)
        return {path.name for path in tmp_path.glob("*.npz") if path.stat().st_mtime_ns != times.get(path.name)}

    entries, length = [{"path": "a.mp4", "cap": "one"}, {"path": "b.jpg", "cap": "two"}], 16
    everything = {"a.npz", "b.npz", EMPTY_TEXT}
    assert changed() == everything and changed() == set()
    entries[0]["cap"] = "the corrected one"
    assert changed() == {"a.npz"} and contains(tmp_path / "a.npz", "the corrected one", models)
    save_embedding(tmp_path / "b.npz", *(array[0] for array in load_embedding(tmp_path / "b.npz")))  # no origin
    (tmp_path / "a.npz").write_bytes(b"damaged")
    assert changed() == {"a.npz", "b.npz"}
    length = 24
    assert changed() == everything
    models = MT5EncoderModel.from_pretrained(text_encoder).set_train(False), models[1]
    weight = models[0].get_parameters().__next__()
    weight.set_data(weight + 1)
    assert changed() == everything and contains(tmp_path / "a.npz", "the corrected one", models, 24)


def test_entries_skipped_by_training_are_reported(tmp_path, capsys):
    entries = [{"path": "a.mp4", "cap": "x"}, {"path": "b.mp4"}, {"path": "/c.mp4", "cap": "x"}, {"cap": 1}]
    (tmp_path / "caption.json").write_text(json.dumps(entries))
    assert [caption.text for caption in read_captions(tmp_path / "caption.json", tmp_path)] == ["", "x"]
    message = capsys.readouterr().err
    assert "3 entries are skipped: entry 1: b.mp4 has no `cap`; entry 2: the path '/c.mp4' is outside" in message


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "caption.json: after 0 objects"),
        ("{}", "entry 0: .* has no `path`"),
        ("[]", "no entry with a caption"),
        ('[{"path": "a.mp4"}]', "entry 0: a.mp4 has no `cap`"),
        ('[{"path": "../a.mp4", "cap": "x"}]', "is outside the folder"),
    ],
)
def test_invalid_annotations_are_rejected(tmp_path, content, message):
    (tmp_path / "caption.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_captions(tmp_path / "caption.json", tmp_path)


@pytest.mark.parametrize("content", [b"PK\x03\x04 truncated", b"", b"\x93NUMPY\x01", b"text"])
def test_damaged_embedding_is_rejected(tmp_path, content):
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(ValueError, match="x.npz: not a text embedding"):
        load_embedding(tmp_path / "x.npz")


@pytest.mark.parametrize("states", [np.full((3, 8), np.nan), np.zeros(8), np.zeros((9, 8))])
def test_invalid_states_are_rejected(tmp_path, states):
    np.savez(tmp_path / "x.npz", states=states, mask=np.ones(4, np.int32))
    with pytest.raises(ValueError, match="x.npz: not a text embedding: states"):
        load_embedding(tmp_path / "x.npz")
