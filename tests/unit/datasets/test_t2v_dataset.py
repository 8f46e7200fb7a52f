"""Training samples of annotated files: pixels, captions and broken samples."""

from __future__ import annotations

import re
import time

import numpy as np
import pytest
from loader_checks import LettersTokenizer
from made_clips import moving_square, write_data_file
from t2v_data import dataset_of, options_of, read_entries, rng, with_entry

from opensora.datasets import transforms
from opensora.datasets.broken import run_with_timeout
from opensora.datasets.t2v.captions import HIGH_QUALITY, LOW_QUALITY, add_quality_sentence, all_with_quality_sentence
from opensora.datasets.t2v.dataset import T2VDataset


def test_pixels_of_video(annotated_clips, tmp_path):
    """The first video at another frame rate: frames 0, 2, 4, ... of a crop, at half the size."""
    data = with_entry(annotated_clips, tmp_path, crop=[0, 64, 0, 64], resolution={"height": 64, "width": 64}, fps=48)
    dataset = dataset_of(data, tmp_path, num_frames=17, max_height=32, max_width=32)
    pixels = dataset.item(0, rng())["pixels"]
    assert pixels.shape == (3, 17, 32, 32) and pixels.dtype == np.float32
    color = rng().integers(0, 256, (10, 3))[0]
    expected = moving_square(33, 64, 96, color)[::2, :, :64].transpose(3, 0, 1, 2)
    expected = transforms.to_float(transforms.resize(expected.astype(np.float32), 32, 32))
    assert np.abs(pixels - expected).mean() < 0.03, "H.264 is lossy"
    assert np.abs(pixels - expected[:, ::-1]).mean() > 0.06, "the order of the frames matters"


def test_pixels_of_image(annotated_clips, tmp_path):
    dataset = dataset_of(annotated_clips, tmp_path, force_resolution=False, max_hxw=3072, min_hxw=1024)
    pixels = dataset.item(6, rng())["pixels"]
    assert pixels.shape == (3, 1, 32, 64)
    color = rng().integers(0, 256, (10, 3))[6]
    expected = moving_square(1, 64, 96, color).transpose(0, 3, 1, 2).astype(np.float32)
    expected = transforms.to_float(transforms.resize_max_area(expected, 3072, 32))
    assert np.abs(pixels[:, 0] - expected[0]).mean() < 0.03


def test_samples_depend_only_on_their_generator(annotated_clips, tmp_path):
    dataset = dataset_of(annotated_clips, tmp_path, num_frames=9)
    first, same, other = (dataset.item(1, rng(seed)) for seed in (0, 0, 1))
    assert np.array_equal(first["pixels"], same["pixels"]) and np.array_equal(first["input_ids"], same["input_ids"])
    assert not np.array_equal(first["pixels"], other["pixels"])


def test_captions_are_cleaned_and_dropped(annotated_clips, tmp_path):
    keeping = dataset_of(annotated_clips, tmp_path, cfg=0.0)
    texts = [LettersTokenizer.text(keeping.item(6, rng())["input_ids"])]
    texts += [LettersTokenizer.text(dataset_of(annotated_clips, tmp_path, cfg=1.0).item(6, rng())["input_ids"])]
    assert texts == ["a square in color 6.", ""]
    scored = LettersTokenizer.text(keeping.item(0, rng())["input_ids"])  # its aesthetic score is 4
    assert "a square in color 0." in scored and len(scored) > 30


def test_quality_sentence_is_added_before_or_after():
    assert len(set(HIGH_QUALITY)) == len(set(LOW_QUALITY)) == 10
    for score, sentences in ((4.25, LOW_QUALITY), (5.75, HIGH_QUALITY)):
        texts = {add_quality_sentence("A cat.", score, False, rng(seed)) for seed in range(300)}
        sentences = [sentence.format(kind="image") for sentence in sentences]
        after, before = ({form.format(sentence) for sentence in sentences} for form in ("A cat. {}", "{} A cat."))
        assert texts == after | before == set(all_with_quality_sentence("A cat.", score, False))
    assert {add_quality_sentence("A cat.", score, True, rng()) for score in (None, 4.26, 5.74)} == {"A cat."}
    assert all_with_quality_sentence("A cat.", float("nan"), True) == ["A cat."]


def test_broken_sample_is_replaced_and_listed(annotated_clips, tmp_path, monkeypatch):
    data = with_entry(annotated_clips, tmp_path, path="missing.mp4")
    dataset = dataset_of(data, tmp_path)
    sample = dataset.item(0, rng(5))
    assert sample["replaced"] == 1 and sample["pixels"].shape == (3, 29, 64, 96)
    line = (tmp_path / "broken_samples.tsv").read_text()
    path = f"{annotated_clips.parent}/clips/missing.mp4"
    assert line == f"{path}@0\t{path}: no such file\n"

    again = dataset_of(data, tmp_path)  # the next run skips the sample and draws the same replacement
    monkeypatch.setattr(again, "_read", lambda index, own: {"index": index})
    assert again.item(0, rng(5))["index"] > 0
    monkeypatch.undo()
    assert np.array_equal(again.item(0, rng(5))["pixels"], sample["pixels"])
    assert (tmp_path / "broken_samples.tsv").read_text() == line


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"crop": [0, 200, 0, 64]}, "the crop .* is outside of 64x96"),
        ({"cut": [10, 0]}, "39 frames needed, 33 can be read"),
    ],
)
def test_wrong_annotation_is_a_broken_sample(annotated_clips, tmp_path, changes, reason):
    dataset = dataset_of(with_entry(annotated_clips, tmp_path, **changes), tmp_path)
    assert dataset.item(0, rng())["replaced"] == 1
    lines = (tmp_path / "broken_samples.tsv").read_text().splitlines()
    assert len(lines) == 1 and re.search(reason, lines[0])


def test_wrong_resolution_without_replacement_raises(annotated_clips, tmp_path):
    data = with_entry(annotated_clips, tmp_path, resolution={"height": 96, "width": 96})
    dataset = dataset_of(data, tmp_path, force_resolution=False, max_hxw=9216, total_batch_size=1)
    assert len(dataset) == 9, "only one sample has its size"
    with pytest.raises(ValueError, match="none of 10 samples of one shape could be read"):
        dataset.item(0, rng())  # its bucket has no other sample


def test_all_samples_broken_raises(annotated_clips, tmp_path):
    entries = read_entries(annotated_clips)
    dataset = dataset_of(write_data_file(tmp_path, entries), tmp_path)
    with pytest.raises(ValueError, match="none of 10 samples of one shape could be read. The last: .*no such file"):
        dataset.item(0, rng())
    assert not (tmp_path / "broken_samples.tsv").exists(), "the samples are not at fault"


def test_slow_read_times_out():
    start = time.perf_counter()
    with pytest.raises(OSError, match="longer than 0.2 s"):
        run_with_timeout(lambda: time.sleep(20), 0.2)
    assert time.perf_counter() - start < 5
    with pytest.raises(KeyError):
        run_with_timeout(lambda: {}["missing"], 1)
    assert run_with_timeout(lambda: 7, 1) == 7


def test_sizes_of_few_samples_are_left_out_unless_all_are_wanted(annotated_clips, tmp_path):
    with pytest.raises(
        ValueError, match="no sample is left.*10 of a size with fewer than 28 samples.*_per_size 0 uses"
    ):
        dataset_of(annotated_clips, tmp_path, total_batch_size=7)
    assert len(dataset_of(annotated_clips, tmp_path, total_batch_size=70, min_steps_per_size=0)) == 10


def test_table_is_logged(annotated_clips, tmp_path, capsys):
    T2VDataset(options_of(annotated_clips, tmp_path), LettersTokenizer())
    assert "29x64x96" in capsys.readouterr().err


def test_caption_with_invalid_characters(annotated_clips, tmp_path):
    """Control characters are accepted; a lone surrogate is a faulty entry."""
    clean = dataset_of(with_entry(annotated_clips, tmp_path, cap="a\x00b\x1b\ufeff\u2028 cat"), tmp_path, cfg=0.0)
    assert clean.item(0, rng())["replaced"] == 0
    index = dataset_of(with_entry(annotated_clips, tmp_path, cap="\ud83d cat"), tmp_path).index
    assert len(index) == 9 and index.left_out["faulty entry"] == 1 and "half of a surrogate pair" in index.faults[0]
