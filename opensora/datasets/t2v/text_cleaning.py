"""Cleans captions as those that the published models were trained on.

The rules are those of DeepFloyd IF's caption cleaner in their order: remove links, markup, nicknames, rare symbols,
ids, file names and web-shop phrases; unify dashes and quotes; repair mojibake; lower-case everything. Chinese
characters stay if the text encoder knows them.

The published rules take time quadratic in the text's length. The ones here match the same strings in linear time: a
run of characters in which a rule does not match from the first possible start is skipped as a whole (the group
`kept`), because later starts have the same possible ends.
"""

from __future__ import annotations

import html
import re
import warnings
from urllib.parse import unquote_plus

import ftfy
from bs4 import BeautifulSoup, MarkupResemblesLocatorWarning, XMLParsedAsHTMLWarning
from bs4.builder import ParserRejectedMarkup

# Characters of a caption that are looked at, the rest is cut off. Text encoders take 512 tokens of at most 16
# characters. Beautiful Soup and ftfy are not linear, so damaged markup without a limit could hold a worker for minutes.
MAX_LENGTH = 8192

DOMAIN = r"[a-z0-9.\-]+\.(?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b/?(?!@)"
FILE_TYPE = r"(?:png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4)"
NUMBER = r"\d+(?:\.\d*)?"
DASHES = (
    "\u002d\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u301c\u3030\u30a0\ufe31\ufe32"
    "\ufe58\ufe63\uff0d"
)


def _rules(*rules: tuple[str, str]) -> list[tuple[re.Pattern, str]]:
    return [(re.compile(pattern), replacement) for pattern, replacement in rules]


def _links(scheme: str) -> tuple[str, str]:
    """The rule that removes links with `scheme` and domains; of other domain-like runs it keeps everything."""
    with_scheme = rf"{scheme}:(?:/{{1,3}}|[a-z0-9%])"
    return (rf"\b(?:{with_scheme}|{DOMAIN}|(?P<kept>[a-z0-9.\-]+?(?=\b{with_scheme}|(?![a-z0-9.\-]))))", r"\g<kept>")


LINKS = _rules(("<person>", "person"), _links("https?"), _links("www"))
SYMBOLS = _rules(
    (r"@\w+\b", ""),  # nicknames
    ("[\u31c0-\u4dff]+", ""),  # strokes, enclosed and rare Chinese characters, hexagrams
)
CHINESE = _rules(("[\u4e00-\u9fff]+", ""))
PUNCTUATION = _rules(
    (rf"[{DASHES}]+", "-"),
    ("[`\u00b4\u00ab\u00bb\u201c\u201d\u00a8]", '"'),
    ("[\u2018\u2019]", "'"),
    (r"&quot;?", ""),
    (r"&amp", ""),
    (r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),  # IP addresses
    (r"\d:\d\d\s+$", ""),  # article numbers
    (r"\\n", " "),  # a line break written out
    (r"#\d{1,3}\b", ""),
    (r"#\d{5,}\b", ""),
    (r"\b\d{6,}\b", ""),
    (rf"\S+\.{FILE_TYPE}|(?P<kept>\S+)", r"\g<kept>"),
    (r"[\"']{2,}", '"'),
    (r"\.{2,}", " "),
    (r"[#\u00ae\u2022\u00a9\u2122&@\u00b7\u00ba\u00bd\u00be\u00bf\u00a1\u00a7~()\[\]{}|\\/*]+", " "),
    (r"(?<!\s)\s+\.\s+", " "),
)
PHRASES = _rules(
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),  # jc6640
    (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),  # jc6640vc
    (r"\b\d+[a-zA-Z]+\d+\b", ""),  # 6640vc231
    (r"(?:worldwide\s+)?(?:free\s+)?shipping", ""),
    (r"(?:free\s)?download(?:\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b{FILE_TYPE}(?:\simages?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d[a-zA-Z\d]*\b", " "),  # j2d1a2a
    (rf"\b{NUMBER}[x\u0445\u00d7]{NUMBER}\b", ""),  # 640x480; the character in the middle is Cyrillic
    (r"\b\s+:\s+", ": "),
    (r"(\D[,./])\b", r"\1 "),
    (r"\s+", " "),
)
ENDS = _rules((r"^[\"']([\w\W]+)[\"']$", r"\1"), (r"^['_,\-:;]", ""), (r"['_,\-:+]$", ""), (r"^\.\S+$", ""))


def clean_caption(text: str, support_chinese: bool = True) -> str:
    """`text` as the published training gave it to the text encoder.

    Args:
        text: of which the first `MAX_LENGTH` characters count.
        support_chinese: False removes Chinese characters, which T5 does not know.
    """
    text = unquote_plus(text[:MAX_LENGTH]).strip().lower()
    text = _without_markup(_apply(LINKS, text))
    text = _apply(SYMBOLS, text)
    if not support_chinese:
        text = _apply(CHINESE, text)
    text = _apply(PUNCTUATION, text)
    if len(re.findall("[-_]", text)) > 3:  # this-is-my-cute-cat
        text = re.sub("[-_]", " ", text)
    text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    text = _apply(PHRASES, text)
    return _apply(ENDS, text).strip()


def _apply(rules: list[tuple[re.Pattern, str]], text: str) -> str:
    for pattern, replacement in rules:
        text = pattern.sub(replacement, text)
    return text


def _without_markup(text: str) -> str:
    """The text of HTML; what no parser takes as HTML stays as it is."""
    if "<" not in text and "&" not in text:
        return text
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MarkupResemblesLocatorWarning)
            warnings.simplefilter("ignore", XMLParsedAsHTMLWarning)
            return BeautifulSoup(text, "html.parser").text
    except ParserRejectedMarkup:
        return text
