"""Captions in the form that the published models were trained on.

The rules are those of DeepFloyd IF's caption cleaner in their order, applied to the text itself: links, markup,
nicknames, rare symbols, ids, file names and phrases of web shops go, dashes and quotes become plain, all is lower
case. Chinese characters stay where the text encoder knows them.
"""
from __future__ import annotations

import html
import re
import unicodedata
from html.parser import HTMLParser
from urllib.parse import unquote_plus

DOMAIN = r"[a-z0-9.\-]+\.(?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b/?(?!@)"
FILE_TYPE = r"(?:png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4)"
DASHES = ("\u002d\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u301c\u3030\u30a0\ufe31\ufe32"
          "\ufe58\ufe63\uff0d")


def _rules(*rules: tuple[str, str]) -> list[tuple[re.Pattern, str]]:
    return [(re.compile(pattern), replacement) for pattern, replacement in rules]


LINKS = _rules(
    ("<person>", "person"),
    (rf"\b(?:(?:https?|www):(?:/{{1,3}}|[a-z0-9%])|{DOMAIN})", ""),
)
SYMBOLS = _rules(
    (r"@\w+\b", ""),                                # nicknames
    ("[\u31c0-\u4dff]+", ""),                       # strokes, enclosed and rare Chinese characters, hexagrams
)
CHINESE = _rules(("[\u4e00-\u9fff]+", ""))
PUNCTUATION = _rules(
    (rf"[{DASHES}]+", "-"),
    ("[`\u00b4\u00ab\u00bb\u201c\u201d\u00a8]", '"'),
    ("[\u2018\u2019]", "'"),
    (r"&quot;?|&amp", ""),
    (r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),   # addresses of computers
    (r"\d:\d\d\s+$", ""),                           # numbers of articles
    (r"\\n", " "),                                  # a line break written out
    (r"#(?:\d{1,3}|\d{5,})\b", ""),
    (r"\b\d{6,}\b", ""),
    (rf"\S+\.{FILE_TYPE}", ""),
    (r"[\"']{2,}", '"'),
    (r"\.{2,}", " "),
    (r"[#\u00ae\u2022\u00a9\u2122&@\u00b7\u00ba\u00bd\u00be\u00bf\u00a1\u00a7~()\[\]{}|\\/*]+", " "),
    (r"\s+\.\s+", " "),
)
PHRASES = _rules(
    (r"\b[a-z]{1,3}\d{3,15}\b", ""),                # jc6640
    (r"\b[a-z]+\d+[a-z]+\b", ""),                   # jc6640vc
    (r"\b\d+[a-z]+\d+\b", ""),                      # 6640vc231
    (r"(?:worldwide\s+)?(?:free\s+)?shipping", ""),
    (r"(?:free\s)?download(?:\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b{FILE_TYPE}(?:\simages?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-z]+\d+[a-z]+\d+[a-z\d]*\b", " "),    # j2d1a2a
    ("\\b\\d+\\.?\\d*[x\u0445\u00d7]\\d+\\.?\\d*\\b", ""),  # 640x480; the middle one is Cyrillic
    (r"\b\s+:\s+", ": "),
    (r"(\D[,./])\b", r"\1 "),
    (r"\s+", " "),
)
ENDS = _rules(
    (r"^[\"']([\w\W]+)[\"']$", r"\1"),
    (r"^['_,\-:;]", ""),
    (r"['_,\-:+]$", ""),
    (r"^\.\S+$", ""),
)


def clean_caption(text: str, support_chinese: bool = True) -> str:
    """`text` as the models saw it in training. Without `support_chinese` Chinese characters go, as T5 needs it."""
    text = unquote_plus(text).strip().lower()
    text = _without_markup(_apply(LINKS, text))
    text = _apply(SYMBOLS, text)
    if not support_chinese:
        text = _apply(CHINESE, text)
    text = _apply(PUNCTUATION, text)
    if len(re.findall("[-_]", text)) > 3:  # this-is-my-cute-cat
        text = re.sub("[-_]", " ", text)
    text = _normalized(text)
    text = _apply(PHRASES, text)
    return _apply(ENDS, text).strip()


def _apply(rules: list[tuple[re.Pattern, str]], text: str) -> str:
    for pattern, replacement in rules:
        text = pattern.sub(replacement, text)
    return text


def _normalized(text: str) -> str:
    """Characters of full width, as Chinese keyboards type them, and ligatures become plain ones; `&eacute;` is é."""
    text = re.sub("[\u3000\ufb00-\ufb06\uff01-\uffef]", lambda wide: unicodedata.normalize("NFKC", wide[0]), text)
    text = unicodedata.normalize("NFC", text)
    return html.unescape(html.unescape(text)).strip()


class _TextOnly(HTMLParser):
    def __init__(self):
        super().__init__()
        self.parts: list[str] = []

    def handle_data(self, data: str) -> None:
        if self.cdata_elem is None:  # else inside of a script
            self.parts.append(data)


def _without_markup(text: str) -> str:
    parser = _TextOnly()
    parser.feed(text)
    parser.close()
    return "".join(parser.parts)
