"""Caption cleaning: golden cases of the published training code."""

from __future__ import annotations

import time

import pytest
from golden_cases import case

from opensora.datasets.t2v.text_cleaning import MAX_LENGTH, clean_caption
from opensora.pipelines.prompt_syntax import clean_prompt


@pytest.mark.parametrize("row", case("text_clean", "training_cases.json")["rows"], ids=lambda row: row["text"][:20])
def test_golden_captions(row):
    assert [clean_caption(row["text"], chinese) for chinese in (True, False)] == row["as_str"]


@pytest.mark.parametrize(
    "row", case("caption_cleaning", "opensora_cases.json")["cases"], ids=lambda row: row["text"][:20]
)
def test_golden_prompts_of_open_sora(row):
    assert clean_prompt(row["text"]) == row["expect"]


# Expected texts are results of the published cleaner, with ftfy and Beautiful Soup installed.
@pytest.mark.parametrize(
    "text, expected",
    [
        ("A <b>bold</b> man walks &amp; talks", "a bold man walks talks"),
        ("<script>alert(1)</script> hi <!-- c --> there", "hi there"),
        ("\uff21 wide \uff08text\uff09\uff01 \ufb01ne", "a wide (text)! fine"),
        ("this-is-my_cute-cat", "this is my cute cat"),
        ("www.foo.com/a for foo@bar.com", "for foo"),
        ("a < b and c > d", "a < b and c > d"),
        ("Sch\xc3\xb6n und gut", "sch\xe3\xb6n und gut"),
        ("it\xe2\u20ac\u2122s a na\xc3\xafve caf\xc3\xa9", "it\u2020s a na\xe3\xafve caf\xe3"),
        ("\u4f60\u597d caf\xc3\xa9", "\u4f60\u597d caf\xe3"),
        (
            "\u0420\u0457\u0421\u0402\u0420\u0451\u0420\u0406\u0420\xb5\u0421\u201a",
            "\u0440\u0457\u0441\u0452\u0440\u0451\u0440\u0456\u0440\xb5\u0441",
        ),
        ("\xe4\xbd \xe5\xa5\xbd", "\xe4 \xe5\xa5"),
        ("\ufeffA dog", "a dog"),
        ("A\u200bdog \x00 with\x07 bells", "a\u200bdog with bells"),
        ("a\x1b[31mred\x1b[0m car", "a 31mred 0m car"),
        ("\x93hi\x94 it\x92s", '"hi" it\'s'),
        ("<![CDATA[inside]]> outside", "inside outside"),
        ("&eacute;t&eacute; &nbsp; &copy &notit; x", "\xe9t\xe9 notit x"),
        ("&am&quot;p; x", 'am"p; x'),
        ("&#65;bc12D &#x41;", "A"),
        ("&amp;lt;b&amp;gt; x", "lt;b gt; x"),
        ("&lt;b&gt;bold&lt;/b&gt;", "<b>bold< b>"),
        ("x &quot y &quot; z", 'x " y " z'),
        ("http://a.com/x y", "y"),
        ("https:a b", "b"),
        ("www:foo bar www.foo.com bar", "oo bar bar"),
        ("foo.com.http://bar", ""),
        ("\xe9foo.com _foo.com", "\xe9foo. com _foo. com"),
        ("a.b.c.d-e.it/x/ y", "y"),
        ("foo.com@x foo.com/@x", "foo. com"),
        ("ftp://a.net/z.html", "ftp: . html"),
        ("#1##23456 #12 #1234 #12345", "1234"),
        ("a   .   b  .c", "a b . c"),
        ("x.png.jpg y.pngs .png", "s ."),
        ("/a/b.mp4,c.mp4 d", "d"),
        ("<ruby>\u5b57<rt>zi</rt></ruby>", "\u5b57"),
        ("<template>t</template><style>s</style><textarea>a</textarea>", "a"),
        ("<!doctype html><p>a</p>", "a"),
        ("<b>a</b>   <i>b</i>", "a b"),
        ("3x4\xe9 3x4.b 3.5x 10\xd720\u04453", "3x4\xe9 . b 3.5x 10\xd7"),
        ("a1a11\xe9 a1a1b2", "a1a11\xe9"),
        ("page  12 page 1a", "page 1a"),
        ("free   shipping worldwide free shipping download free", ""),
        ("\ufb00 \ufb01 \ufb02 \uff21\uff42 \uff76\uff9e \u2460", "ff fi fl ab \u30ac \u2460"),
        ("e\u0301 \u212b", "\xe9 \xe5"),
        ("\u3000wide\u3000", "wide"),
        ("a\u2028b\x85c\r\nd", "a b\u2026c d"),
        ("\"'quoted'\"", "quoted"),
        ("'x'\n", "x"),
        ("_-,lead", "-, lead"),
        ("trail+-", "trail"),
        (".a .b", ".a . b"),
        (".onlyone", ""),
        ("1:23   ", "1:23"),
        ("\u3300\u3400\u4dc0\U00020000 \u5b57", "\U00020000 \u5b57"),
        ("\xbd \xbe ~ \xb0 5\xb5m", "\xb0 5\xb5m"),
        (
            "\U0001f642 smile \U0001f468\u200d\U0001f469\u200d\U0001f467",
            "\U0001f642 smile \U0001f468\u200d\U0001f469\u200d\U0001f467",
        ),
        ("%E4%BD%A0 %zz 100%25+x", "\u4f60 %zz 100% x"),
        ("A < b > c & d", "a < b > c d"),
        ("<person><PERSON>", "personperson"),
        ("click on me, click for more", ""),
        ("JPG images webp image", ""),
        ("i\u0307stanbul \u0130stanbul \u01c5 \xdf", "i\u0307stanbul i\u0307stanbul d\u017e \xdf"),
        ("&#xd800; &#0; &#x110000;", "\ufffd \ufffd \ufffd"),
        ("<a href='x.png'>link</a> <br/> <img src=\"a\">", "link"),
        ("\\n a\\nb", "a b"),
        ("\xe4\xbd\xa0\xe5\xa5\xbd \xc2\xa9 \xc2\xb0", "\xe4 \xe5\xa5 \xe2 \xe2\xb0"),
        ("1.2.3.4 1234.1.1.1.1", "1 . 1"),
    ],
)
def test_cleaning_of_special_cases(text, expected):
    assert clean_caption(text) == expected


def test_markup_rejected_by_the_parser_is_kept():
    assert clean_caption("a cat <![no markup") == "a cat <! no markup"


@pytest.mark.parametrize(
    "unit",
    [
        "a",
        "a.",
        "\u7ea2",
        "1",
        "1.",
        "a1",
        "_",
        "-",
        "@",
        "#",
        "(",
        "&",
        "<",
        "<a ",
        "<!--",
        "</",
        "<b>",
        "http://",
        "a.com@",
        " ",
        "\t.",
        "0x1",
        "free ",
        "%4",
        "\u00c3\u00a9",
        "&#38;",
        "\u0301",
    ],
)
def test_time_is_linear(unit):
    """With the published rules, texts of 8000 characters take seconds to minutes and block other threads."""
    for text in (unit, f"a1a1{unit}", unit + "\u00e9", f"{unit}>"):
        start = time.perf_counter()
        clean_caption(text.replace(unit, unit * (8000 // len(unit))))
        assert time.perf_counter() - start < 5


def test_length_is_limited():
    start = time.perf_counter()
    assert clean_caption("a" * 10**7) == "a" * MAX_LENGTH
    assert time.perf_counter() - start < 5
