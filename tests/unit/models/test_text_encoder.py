"""mT5 against the reference, and its tokenizer."""

from __future__ import annotations

import shutil

import pytest
from golden_cases import case_names
from golden_models import mt5_rows
from tiny_models import make_published_release

from opensora.models.text_encoder.tokenizer import Tokenizer


@pytest.mark.parametrize("name", case_names("mt5_"))
def test_output_matches_reference(name, mode):
    rows = mt5_rows(name)
    assert max(rows.values()) < 1e-4, rows


def test_tokenizer_needs_only_the_sentencepiece_model(tmp_path):
    folder = make_published_release(tmp_path / "release") / "mt5-xxl"
    shutil.copy(folder / "spiece.model", tmp_path)
    texts = ["A red circle moves right on a blue background", ""]
    ids, mask = Tokenizer(folder)(texts, 24)
    alone_ids, alone_mask = Tokenizer(tmp_path)(texts, 24)
    assert (ids == alone_ids).all() and (mask == alone_mask).all()
    assert ids.shape == (2, 24) and ids[1, 0] == 1 and mask.sum(1).tolist()[1] == 1


def test_folder_without_tokenizer_is_rejected(tmp_path):
    with pytest.raises(ValueError, match="holds no tokenizer"):
        Tokenizer(tmp_path)
