"""Cleans captions in the same way as the training data of the published models.

The rules are those of the caption cleaner of DeepFloyd IF, in the same order: remove links, markup, user names, rare
symbols, ids, file names and web shop phrases; unify dashes and quotes; repair mojibake; convert to lower case. Chinese
characters are kept if the text encoder supports them.

The published rules take quadratic time in the length of the text. The rules here match the same strings in linear
time: if a rule does not match from the first possible start in a run of characters, the whole run is skipped (the
group `kept`), because later starts have the same possible ends.
"""

from __future__ import annotations

import html
import re
import warnings
from urllib.parse import unquote_plus

import ftfy
from bs4 import BeautifulSoup, MarkupResemblesLocatorWarning, XMLParsedAsHTMLWarning
from bs4.builder import ParserRejectedMarkup

# Captions are truncated to this many characters. Text encoders accept 512 tokens of at most 16 characters. Beautiful
# Soup and ftfy are not linear, so without a limit, malformed markup could block a worker for minutes.
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
    """The rule that removes links with `scheme` and domains; other domain-like runs are kept."""
    with_scheme = rf"{scheme}:(?:/{{1,3}}|[a-z0-9%])"
    return (rf"\b(?:{with_scheme}|{DOMAIN}|(?P<kept>[a-z0-9.\-]+?(?=\b{with_scheme}|(?![a-z0-9.\-]))))", r"\g<kept>")


LINKS = _rules(("<person>", "person"), _links("https?"), _links("www"))
SYMBOLS = _rules(
    (r"@\w+\b", ""),  # user names
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
    (r"\\n", " "),  # an escaped line break
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
    """Cleans a caption for the text encoder.

    Args:
        text: truncated to `MAX_LENGTH` characters.
        support_chinese: False removes Chinese characters, which T5 does not support.
    """
    text = unquote_plus(text[:MAX_LENGTH]).strip().lower()
    text = _strip_markup(_apply(LINKS, text))
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


def _strip_markup(text: str) -> str:
    """The text of HTML; text that the parser rejects is returned unchanged."""
    if "<" not in text and "&" not in text:
        return text
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MarkupResemblesLocatorWarning)
            warnings.simplefilter("ignore", XMLParsedAsHTMLWarning)
            return BeautifulSoup(text, "html.parser").text
    except ParserRejectedMarkup:
        return text
