"""Captions against the golden cases of the published training code."""
from __future__ import annotations

import pytest
from golden_cases import case

from opensora.datasets.text_cleaning import clean_caption
from opensora.pipelines.prompt_syntax import clean_prompt


@pytest.mark.parametrize("row", case("text_clean", "training_cases.json")["rows"], ids=lambda row: row["text"][:20])
def test_golden(row):
    assert [clean_caption(row["text"], chinese) for chinese in (True, False)] == row["as_str"]


@pytest.mark.parametrize("row", case("caption_cleaning", "opensora_cases.json")["cases"],
                         ids=lambda row: row["text"][:20])
def test_golden_of_open_sora(row):
    assert clean_prompt(row["text"]) == row["expect"]


# Expected texts are what the published cleaner gives, with ftfy and Beautiful Soup installed.
@pytest.mark.parametrize("text, expected", [
    ("A <b>bold</b> man walks &amp; talks", "a bold man walks talks"),
    ("<script>alert(1)</script> hi <!-- c --> there", "hi there"),
    ("\uff21 wide \uff08text\uff09\uff01 \ufb01ne", "a wide (text)! fine"),
    ("this-is-my_cute-cat", "this is my cute cat"),
    ("www.foo.com/a for foo@bar.com", "for foo"),
    ("a < b and c > d", "a < b and c > d"),
])
def test_what_the_golden_case_leaves_out(text, expected):
    assert clean_caption(text) == expected
