"""Words that the text of this project avoids, because the field has other words for them."""

from __future__ import annotations

import re

import pytest
from processes import ROOT

SUFFIXES = (".py", ".cc", ".h", ".sh", ".md", ".yaml", ".yml", ".toml")
FOLDERS = ("opensora", "scripts", "docs", "configs", "tools", "examples", "benchmarks", "tests", "assets")
AVOIDED = {
    r"\bone behind the other\b": "consecutive, contiguous",
    r"\b(is|are) told\b": "passed, conditioned on",
    r"\bon end\b": "consecutive",
    r"\bgo(es|ing)? on (from|after|with|training)\b": "resume, continue",
    r"\bcut off\b": "truncated",
    r"\bthere and back\b": "encode and decode",
    r"\bone after the other\b": "consecutive, sequentially",
    r"\bso many(th)?\b": "a number",
    r"\bstands? (in for|behind|before)\b": "replaces, follows, precedes",
    r"\bcolour": "color",
    r"\bneighbour": "neighbor",
    r"\bnormalis": "normaliz",
    r"\binitialis": "initializ",
    r"\bdealt\b": "distributed",
    r"\bpictures?\b": "image",
}
# Published or fixed names.
ALLOWED = re.compile(
    r"picture(_prompt)?\.(png|txt)|picture\*|pictures(\.json|/)|--pictures|args\.pictures|pictures: int"
    r"|(train/|train_)pictures"
    r"|leading pictures"  # of HEVC
)


@pytest.mark.parametrize("pattern", AVOIDED)
def test_text_uses_the_terms_of_the_field(pattern):
    found = []
    paths = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in SUFFIXES]
    for path in [*paths, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]:
        if path.name == "test_wording.py":
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if re.search(pattern, ALLOWED.sub("", line), re.I):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert not found, "\n".join(found)
