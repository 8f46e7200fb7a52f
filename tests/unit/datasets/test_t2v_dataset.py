"""Training samples of real files: what is read, what a broken file does, cached embeddings, batches by processes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import loader_checks
import numpy as np
import pytest
from loader_checks import LettersTokenizer, WhereItRuns
from made_clips import make_clips, moving_square, write_data_file

from opensora.datasets import transforms
from opensora.datasets.broken import in_time
from opensora.datasets.loader import Loader
from opensora.datasets.sampler import BatchSampler
from opensora.datasets.t2v import probing
from opensora.datasets.t2v.captions import HIGH_QUALITY, LOW_QUALITY, say_quality
from opensora.datasets.t2v.dataset import T2VDataset
from opensora.datasets.t2v.index import open_index
from opensora.datasets.t2v.options import T2VDataOptions
from opensora.datasets.t2v.text_embeddings import EMPTY_TEXT, Origin, digest, save_embedding

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A data file of 6 videos and 4 images of 64x96."""
    return make_clips(tmp_path_factory.mktemp("made") / "data")


def options_of(data: Path, cache: Path, **changes) -> T2VDataOptions:
    return T2VDataOptions(
        **{
            **dict(
                data=str(data),
                num_frames=29,
                max_height=64,
                max_width=96,
                force_resolution=True,
                group_data=True,
                model_max_length=64,
                cache_dir=str(cache),
            ),
            **changes,
        }
    )


def dataset_of(data: Path, cache: Path, **changes) -> T2VDataset:
    return T2VDataset(options_of(data, cache, **changes), LettersTokenizer(), quiet=True)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def with_entry(made: Path, folder: Path, **changes) -> Path:
    """The data of `made` with its first entry changed."""
    entries = json.loads((made.parent / "annotation.json").read_text())
    entries[0].update(changes)
    data = write_data_file(folder, entries)
    data.write_text(f"{made.parent / 'clips'},{folder / 'annotation.json'}\n")
    return data


def test_pixels_of_a_video(made, tmp_path):
    """The first video at another rate: frames 0, 2, 4 ... of a crop, in half the size."""
    data = with_entry(made, tmp_path, crop=[0, 64, 0, 64], resolution={"height": 64, "width": 64}, fps=48)
    dataset = dataset_of(data, tmp_path, num_frames=17, max_height=32, max_width=32)
    pixels = dataset.item(0, rng())["pixels"]
    assert pixels.shape == (3, 17, 32, 32) and pixels.dtype == np.float32
    color = rng().integers(0, 256, (10, 3))[0]
    expected = moving_square(33, 64, 96, color)[::2, :, :64].transpose(3, 0, 1, 2)
    expected = transforms.to_float(transforms.resize(expected.astype(np.float32), 32, 32))
    assert np.abs(pixels - expected).mean() < 0.03, "H.264 changes a little"
    assert np.abs(pixels - expected[:, ::-1]).mean() > 0.06, "the order of the frames matters"


def test_pixels_of_an_image(made, tmp_path):
    dataset = dataset_of(made, tmp_path, force_resolution=False, max_hxw=3072, min_hxw=1024)
    pixels = dataset.item(6, rng())["pixels"]
    assert pixels.shape == (3, 1, 32, 64)
    color = rng().integers(0, 256, (10, 3))[6]
    expected = moving_square(1, 64, 96, color).transpose(0, 3, 1, 2).astype(np.float32)
    expected = transforms.to_float(transforms.resize_max_area(expected, 3072, 32))
    assert np.abs(pixels[:, 0] - expected[0]).mean() < 0.03


def test_samples_depend_on_their_generator_alone(made, tmp_path):
    dataset = dataset_of(made, tmp_path, num_frames=9)
    first, same, other = (dataset.item(1, rng(seed)) for seed in (0, 0, 1))
    assert np.array_equal(first["pixels"], same["pixels"]) and np.array_equal(first["input_ids"], same["input_ids"])
    assert not np.array_equal(first["pixels"], other["pixels"])


def test_captions(made, tmp_path):
    keeping = dataset_of(made, tmp_path, cfg=0.0)
    texts = [LettersTokenizer.text(keeping.item(6, rng())["input_ids"])]
    texts += [LettersTokenizer.text(dataset_of(made, tmp_path, cfg=1.0).item(6, rng())["input_ids"])]
    assert texts == ["a square in color 6.", ""]
    scored = LettersTokenizer.text(keeping.item(0, rng())["input_ids"])  # its aesthetic score is 4
    assert "a square in color 0." in scored and len(scored) > 30


def test_sentences_about_quality():
    assert len(set(HIGH_QUALITY)) == len(set(LOW_QUALITY)) == 10
    for score, sentences in ((4.25, LOW_QUALITY), (5.75, HIGH_QUALITY)):
        texts = {say_quality("A cat.", score, False, rng(seed)) for seed in range(300)}
        sentences = [sentence.format(kind="image") for sentence in sentences]
        after, before = ({form.format(sentence) for sentence in sentences} for form in ("A cat. {}", "{} A cat."))
        assert texts == after | before
    assert {say_quality("A cat.", score, True, rng()) for score in (None, 4.26, 5.74)} == {"A cat."}


# Broken samples


def test_a_broken_sample_is_replaced_and_remembered(made, tmp_path, monkeypatch):
    data = with_entry(made, tmp_path, path="missing.mp4")
    dataset = dataset_of(data, tmp_path)
    sample = dataset.item(0, rng(5))
    assert sample["replaced"] == 1 and sample["pixels"].shape == (3, 29, 64, 96)
    line = (tmp_path / "broken_samples.tsv").read_text()
    assert line == f"{made.parent}/clips/missing.mp4@0\t{made.parent}/clips/missing.mp4: no such file\n"

    again = dataset_of(data, tmp_path)  # the next run does not try, and goes on with the same samples
    monkeypatch.setattr(again, "_read", lambda index, own: {"index": index})
    assert again.item(0, rng(5))["index"] > 0
    monkeypatch.undo()
    assert np.array_equal(again.item(0, rng(5))["pixels"], sample["pixels"])
    assert (tmp_path / "broken_samples.tsv").read_text() == line


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"crop": [0, 200, 0, 64]}, "its crop .* does not lie in 64x96"),
        ({"cut": [10, 0]}, "39 frames needed, 33 can be read"),
    ],
)
def test_annotations_that_are_wrong(made, tmp_path, changes, reason):
    dataset = dataset_of(with_entry(made, tmp_path, **changes), tmp_path)
    assert dataset.item(0, rng())["replaced"] == 1
    lines = (tmp_path / "broken_samples.tsv").read_text().splitlines()
    assert len(lines) == 1 and re.search(reason, lines[0])


def test_a_wrong_resolution(made, tmp_path):
    data = with_entry(made, tmp_path, resolution={"height": 96, "width": 96})
    dataset = dataset_of(data, tmp_path, force_resolution=False, max_hxw=9216, total_batch_size=1)
    assert len(dataset) == 9, "the only one of its size"
    with pytest.raises(ValueError, match="none of 10 samples of one shape could be read"):
        dataset.item(0, rng())  # in its own bucket there is no other


def test_every_sample_broken(made, tmp_path):
    entries = json.loads((made.parent / "annotation.json").read_text())
    dataset = dataset_of(write_data_file(tmp_path, entries), tmp_path)
    with pytest.raises(ValueError, match="none of 10 samples of one shape could be read. The last: .*no such file"):
        dataset.item(0, rng())
    assert not (tmp_path / "broken_samples.tsv").exists(), "the fault is not that of the samples"


def test_reading_is_given_up_in_time():
    start = time.perf_counter()
    with pytest.raises(OSError, match="longer than 0.2 s"):
        in_time(lambda: time.sleep(20), 0.2)
    assert time.perf_counter() - start < 5
    with pytest.raises(KeyError):
        in_time(lambda: {}["missing"], 1)
    assert in_time(lambda: 7, 1) == 7


def test_no_samples_left(made, tmp_path):
    with pytest.raises(ValueError, match="no sample is left.*10 of a size with fewer than 28 samples"):
        dataset_of(made, tmp_path, total_batch_size=7)


def test_the_table_is_printed(made, tmp_path, capsys):
    T2VDataset(options_of(made, tmp_path), LettersTokenizer())
    assert "29x64x96" in capsys.readouterr().err


# Annotations that leave out what the files say


@pytest.fixture()
def guide_form(made, tmp_path) -> Path:
    """The data of `made` as the guide writes annotations: path, frame range and caption alone."""
    entries = json.loads((made.parent / "annotation.json").read_text())
    short = [
        {
            "path": entry["path"],
            "cap": [entry["cap"]],
            **({"frame_idx": "0:513"} if entry["path"].endswith(".mp4") else {}),
        }
        for entry in entries
    ]
    (tmp_path / "annotation.json").write_text(json.dumps(short))
    (tmp_path / "merge_data.txt").write_text(f"{made.parent / 'clips'},{tmp_path / 'annotation.json'}\n")
    return tmp_path / "merge_data.txt"


def test_the_form_of_the_guide_trains(made, guide_form, tmp_path):
    dataset, complete = dataset_of(guide_form, tmp_path, cfg=0.0), dataset_of(made, tmp_path / "complete", cfg=0.0)
    assert dataset.index.shapes == complete.index.shapes == [(29, 64, 96), (1, 64, 96)] and len(dataset) == 10
    assert dataset.index.record(2) == {
        "source": 0,
        "path": "2.mp4",
        "cap": ["A square in color 2."],
        "start": 0,
        "num_frames": 33,
        "fps": 24.0,
    }
    sample = dataset.item(2, rng())
    assert sample["replaced"] == 0 and sample["pixels"].shape == (3, 29, 64, 96)


def test_files_are_probed_once(made, guide_form, tmp_path, monkeypatch):
    dataset_of(guide_form, tmp_path)
    monkeypatch.setattr(probing, "_read_all", lambda paths: [(path, pytest.fail(path)) for path in paths])
    assert len(dataset_of(guide_form, tmp_path, num_frames=17)) == 10, "another index from the same files"
    monkeypatch.undo()
    (tmp_path / "dataset_index/media.sqlite").write_bytes(b"damaged" * 1000)
    assert len(dataset_of(guide_form, tmp_path, num_frames=13)) == 10


def test_files_that_cannot_be_probed(made, tmp_path):
    """They are named and left out, and looked at again when they have changed."""
    clips = tmp_path / "clips"
    clips.mkdir()
    for name in ("0.mp4", "1.mp4", "6.jpg"):
        shutil.copy(made.parent / "clips" / name, clips)
    (clips / "2.mp4").write_bytes(b"no video")
    data = write_data_file(
        tmp_path, [{"path": name, "cap": "x"} for name in ("0.mp4", "1.mp4", "2.mp4", "3.mp4", "6.jpg")]
    )
    index = open_index(options_of(data, tmp_path))
    assert len(index) == 3 and index.left_out["no resolution"] == 2
    assert "entry 2: " in index.faults[0] and "3.mp4: no such file" in index.faults[1]
    for name in ("2.mp4", "3.mp4"):
        shutil.copy(made.parent / "clips" / name, clips)
    assert len(open_index(options_of(data, tmp_path))) == 5


def test_a_file_that_crashes_the_decoder_is_not_probed_forever(made, guide_form, tmp_path):
    """The crash costs one sample, here too."""
    results = dict(zip("abc", [None] * 3))
    for batch in Loader(loader_checks.CrashingFiles(list(results)), probing._InOrder(3), probing._as_they_are, 1):
        results.update(zip("abc", batch["results"]))
    assert results == {
        "a": probing.Media(64, 96, 24.0, 33),
        "b": "the data worker crashed: SIGSEGV",
        "c": probing.Media(64, 96, 24.0, 33),
    }


def test_captions_that_are_no_text(made, tmp_path):
    """Control characters do not matter; half a surrogate pair is a faulty entry."""
    clean = dataset_of(with_entry(made, tmp_path, cap="a\x00b\x1b\ufeff\u2028 cat"), tmp_path, cfg=0.0)
    assert clean.item(0, rng())["replaced"] == 0
    index = dataset_of(with_entry(made, tmp_path, cap="\ud83d cat"), tmp_path).index
    assert len(index) == 9 and index.left_out["faulty entry"] == 1 and "half of a surrogate pair" in index.faults[0]


# Cached embeddings


@pytest.fixture()
def embedded(made, tmp_path) -> T2VDataOptions:
    """The data of `made` with embeddings: the k-th sample's states are all k, those of the empty text -1."""
    folder = tmp_path / "embeddings"
    mask = np.array([1] * 5 + [0] * 59, np.int32)
    for number in range(10):
        save_embedding(folder / f"{number}.npz", np.full((64, 8), number, np.float32), mask)
    save_embedding(folder / EMPTY_TEXT, np.full((64, 8), -1, np.float32), mask)
    data = tmp_path / "merge_data.txt"
    data.write_text(f"{made.parent / 'clips'},{folder},{made.parent / 'annotation.json'}\n")
    return options_of(data, tmp_path, text_embed_cache=True)


def test_embeddings(embedded):
    for cfg, value in ((0.0, 3), (1.0, -1)):
        sample = T2VDataset(replace(embedded, cfg=cfg), None, quiet=True).item(3, rng())
        assert sample["cond"].shape == (1, 64, 8) and sample["cond_mask"].sum() == 5 and "input_ids" not in sample
        assert (sample["cond"][0, :5] == value).all() and (sample["cond"][0, 5:] == 0).all()


def test_embeddings_that_are_not_there(made, embedded, tmp_path):
    with pytest.raises(ValueError, match="has no embedding_root"):
        T2VDataset(replace(embedded, data=str(made)), None, quiet=True)
    with pytest.raises(ValueError, match="give one of the two"):
        T2VDataset(embedded, LettersTokenizer(), quiet=True)
    (tmp_path / "embeddings/3.npz").unlink()
    with pytest.raises(ValueError, match="_empty.npz: made with --model_max_length 64, but training has 32"):
        T2VDataset(replace(embedded, model_max_length=32), None, quiet=True)
    assert T2VDataset(replace(embedded, cfg=0.0), None, quiet=True).item(3, rng())["replaced"] == 1
    (tmp_path / "embeddings" / EMPTY_TEXT).unlink()
    with pytest.raises(FileNotFoundError, match="_empty.npz: no such embedding; sample_text_embed.py makes it"):
        T2VDataset(embedded, None, quiet=True)


def origin_of(caption: str, encoder: str = "e") -> Origin:
    return Origin("", digest(caption.encode()), "", encoder)


def test_embeddings_of_other_captions_are_refused(made, embedded, tmp_path):
    folder, mask = tmp_path / "embeddings", np.ones(64, np.int32)

    def save(name: str, value: int, origin: Origin) -> None:
        save_embedding(folder / name, np.full((64, 8), value, np.float32), mask, origin)

    def open_dataset() -> T2VDataset:
        return T2VDataset(replace(embedded, cfg=0.0), None, quiet=True)

    save(EMPTY_TEXT, -1, origin_of(""))
    for number in range(10):
        save(f"{number}.npz", number, origin_of(f"A square in color {number}."))
    assert open_dataset().item(3, rng())["cond"][0, 0, 0] == 3
    save("3.npz", 3, origin_of("A circle."))
    with pytest.raises(ValueError, match="1 text embeddings .*3.npz: made from another caption than the one that"):
        open_dataset()
    save("3.mp4.npz", 33, origin_of("A square in color 3."))
    assert open_dataset().item(3, rng())["cond"][0, 0, 0] == 33
    save("4.npz", 4, origin_of("A square in color 4.", encoder="another"))
    with pytest.raises(ValueError, match="4.npz: made by another text encoder"):
        open_dataset()


def test_embeddings_without_origin_that_two_captions_share(made, embedded, tmp_path):
    """Two parts of one film in a cache of an earlier version."""
    entries = json.loads((made.parent / "annotation.json").read_text())
    entries.append({**entries[0], "cap": "Another part.", "cut": [1, 32]})
    (tmp_path / "annotation.json").write_text(json.dumps(entries))
    folders = made.parent / "clips", tmp_path / "embeddings", tmp_path / "annotation.json"
    Path(embedded.data).write_text(",".join(map(str, folders)))
    with pytest.raises(ValueError, match="0.npz: captions of 0.mp4 and 0.mp4 share this file"):
        T2VDataset(embedded, None, quiet=True)


# Batches


def batches(dataset, count: int, num_workers: int, batch_size: int = 2, rank: int = 0, world_size: int = 1):
    loader = Loader(
        dataset,
        BatchSampler(dataset.buckets, batch_size, rank, world_size, seed=3),
        dataset.collate(batch_size),
        num_workers,
    )
    return [batch for _, batch in zip(range(count), loader)], loader


def assert_equal(ours: dict, theirs: dict) -> None:
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_workers_change_nothing(made, tmp_path):
    dataset = dataset_of(with_entry(made, tmp_path, path="missing.mp4"), tmp_path, num_frames=9)
    alone, here = batches(dataset, 7, num_workers=0)
    together, by_workers = batches(dataset, 7, num_workers=2)
    for ours, theirs in zip(alone, together):
        assert_equal(ours, theirs)
    assert alone[0]["pixels"].shape[0] == 2 and alone[0]["positions"].tolist() == [0, 1]
    assert here.sampler.state_dict() == by_workers.sampler.state_dict()
    assert here.replaced == by_workers.replaced >= 1 and by_workers.wait_seconds > 0 and by_workers.batches == 7


def test_ranks_read_what_one_process_reads(made, tmp_path):
    dataset = dataset_of(made, tmp_path, num_frames=9)
    alone, _ = batches(dataset, 3, num_workers=0, batch_size=2)
    ranks = [batches(dataset, 3, num_workers=0, batch_size=1, rank=rank, world_size=2)[0] for rank in range(2)]
    for step, whole in enumerate(alone):
        for rank in range(2):
            part = ranks[rank][step]
            assert part["positions"].tolist() == [rank]
            assert np.array_equal(part["pixels"][0], whole["pixels"][rank])
            assert np.array_equal(part["input_ids"][0], whole["input_ids"][rank])


def test_batches_of_several_sizes(made, tmp_path):
    dataset = dataset_of(made, tmp_path, group_data=False, num_frames=9)
    assert len(dataset.buckets) == 1
    made_batches, _ = batches(dataset, 5, num_workers=0, batch_size=2)
    assert {batch["pixels"].shape for batch in made_batches} == {(2, 3, 9, 64, 96)}
    masks = [batch["attention_mask"] for batch in made_batches]
    assert any(mask is not None and mask.shape == (2, 3, 8, 12) and not mask.all() for mask in masks)


def test_samples_larger_than_their_batches(made, tmp_path):
    dataset = dataset_of(
        made, tmp_path, force_resolution=False, max_hxw=6144, max_height=64, max_width=64, group_data=False
    )
    with pytest.raises(ValueError, match="samples of 29x64x96, .* padded to .* 29x64x64: raise them"):
        dataset.collate(2)
    assert dataset.collate(1).size is None


def test_nothing_that_workers_need_imports_mindspore(run):
    modules = [f"opensora.datasets.{path.stem}" for path in (ROOT / "opensora/datasets").glob("[a-z]*.py")]
    finished = run(
        "-c",
        f"import sys, {', '.join(modules)}, opensora.models.text_encoder.tokenizer\n"
        "sys.exit('mindspore' in sys.modules)",
    )
    assert len(modules) > 10 and finished.returncode == 0, finished.stderr


def test_workers_do_without_mindspore():
    loader = Loader(WhereItRuns(), BatchSampler([np.arange(4)], 1), num_workers=1)
    batch = next(iter(loader))
    assert batch["process"][0] != os.getpid() and not batch["mindspore"][0]


def test_an_error_of_a_worker_is_passed_on(made, tmp_path):
    entries = json.loads((made.parent / "annotation.json").read_text())
    dataset = dataset_of(write_data_file(tmp_path, entries), tmp_path)  # its files are not there
    with pytest.raises(ValueError, match="none of 10 samples of one shape could be read"):
        batches(dataset, 1, num_workers=1)


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL, signal.SIGTERM], ids=["Ctrl-C", "SIGKILL", "SIGTERM"])
def test_no_process_is_left_behind(end):
    """The signal goes to the whole process group, as from a terminal, or to the program alone."""
    program = subprocess.Popen(
        [sys.executable, ROOT / "tests/helpers/loader_program.py"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    workers = [int(program.stdout.readline()) for _ in range(2)]
    assert all(map(alive, workers))
    if end == signal.SIGINT:
        os.killpg(program.pid, end)
    else:
        program.send_signal(end)
    _, errors = program.communicate(timeout=20)
    deadline = time.monotonic() + 10
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, workers))
    if end == signal.SIGINT:
        assert errors == "stopped\n" and program.returncode == 130


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
