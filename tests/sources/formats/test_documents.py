import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import SourceSpec
from pipeline.errors import InputError
from pipeline.sources.formats import html
from pipeline.sources.listing import list_sources
from pipeline.sources.survey import survey
from tests.sources.formats.reading import blocks_of, rows_of

BOTH = pa.schema([("text", pa.string()), ("path", pa.string())])
PAGE = pa.schema([("text", pa.string()), ("title", pa.string()), ("path", pa.string())])

# --- text


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(codec="utf-8"), max_size=50), st.sampled_from(["a.txt", "a.md", "a.rst"]))
def test_a_file_is_a_document_as_it_is(text: str, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(b"\xef\xbb\xbf" + text.encode())
        assert rows_of(path, BOTH) == ([{"text": text, "path": str(path)}], [])
        (block,) = blocks_of(path, BOTH)
    assert block.positions.to_pylist() == [0]


@pytest.mark.parametrize("name", ["a.txt", "a.html"])
def test_a_file_that_is_no_document_is_a_bad_row(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"x" * 2000)
    assert rows_of(path, max_row_bytes=1000) == (
        [],
        [(0, "the file is longer than limits.max_row_bytes (1000)")],
    )
    path.write_bytes(b"x\xff")
    ((place, error),) = rows_of(path)[1]
    assert place == 0
    assert "is not valid" in error
    assert error.endswith("(byte 1)")
    packed = tmp_path / f"{name}.gz"
    packed.write_bytes(b"not packed")
    assert rows_of(packed) == ([{"text": "not packed"}], [])
    packed.write_bytes(b"\x01neither packed nor text")
    assert "corrupt" in rows_of(packed)[1][0][1]


# --- html


def seen(markup: str | bytes) -> str:
    content = markup if isinstance(markup, bytes) else markup.encode()
    return html.page(content)["text"]


@pytest.mark.parametrize(
    ("markup", "expected"),
    [
        ("<p>a<b>b</b>c</p><p>d</p>x<br>y", "abc\nd\nx\ny"),
        ("<p>one\n  two <i> three</i> </p>", "one two three"),
        ("<table><tr><td>1</td><td>2</td></tr><tr><td>3<td>4</table>", "1\t2\n3\t4"),
        ("<ul><li>a<li>b</ul>", "a\nb"),
        ("<pre>a\n  b</pre>c", "a\n  b\nc"),
        ("a<script>b</script><style>c</style><template>d</template><!-- e -->f", "af"),
        ("<head><title>t</title></head><body><h1>h</h1>b", "h\nb"),
        ("a&nbsp;b &lt;c&gt; &eacute; &#x1F600; &bogus;", "a\xa0b <c> é 😀 &bogus;"),
        ("<textarea>t</textarea><button>b</button><noscript>n</noscript>", "t\nb\nn"),
        ("plain", "plain"),
        ("", ""),
        ("<p>a<<b>c</p </div>d", "a<c\nd"),
        ("<svg><text>s</text></svg>", "s"),
        ("a <b> b</b> <i> </i> c", "a b c"),
    ],
)
def test_what_can_be_seen_is_text_and_nothing_else(markup: str, expected: str) -> None:
    assert seen(markup) == expected


def test_depth_and_size_have_no_limit() -> None:
    assert seen("<div>" * 5000 + "deep" + "</div>" * 5000 + "after") == "deep\nafter"
    assert len(seen("<p>" + "x" * 12_000_000)) == 12_000_000


WORDS = st.text("abcé日", min_size=1, max_size=5)
INLINE = st.sampled_from(["b", "i", "span", "a", "em", "u", "font"])
BLOCK = st.sampled_from(["p", "div", "li", "h1", "section", "td", "custom-tag"])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(WORDS, INLINE | BLOCK, st.booleans()), max_size=30))
def test_every_word_outside_scripts_is_kept_in_order(parts: list[tuple[str, str, bool]]) -> None:
    markup = "".join(f"<{tag}>{word}{f'</{tag}>' if closed else ''} " for word, tag, closed in parts)
    assert seen(f"<!DOCTYPE html><body>{markup}").split() == [word for word, _, _ in parts]


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200) | st.text("<>/!-='\"ab &;#x \ufeff\x00", max_size=60).map(str.encode))
def test_whatever_the_bytes_are_parsing_gives_text_or_a_bad_row(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.html"
        path.write_bytes(content)
        good, bad = rows_of(path, PAGE)
    assert len(good) + len(bad) == 1


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\xef\xbb\xbf<meta charset=latin-1>\xc3\xa9", "é"),
        ("é".encode("utf-16"), "é"),
        (b"\xc3\xa9", "é"),
        (b"<meta charset=iso-8859-1>\xe9\x80", "é€"),
        (b'<meta http-equiv="Content-Type" content="text/html; charset=windows-1251">\xe9', "й"),
        ("<meta charset='Shift_JIS'>日本".encode("shift_jis"), "日本"),
        ("<meta charset=gb2312>中文".encode("gbk"), "中文"),
        ("<meta charset=euc-kr>한국".encode("euc-kr"), "한국"),
        (b"<!-- <meta charset=latin-1> --><meta charset=utf-16>\xc3\xa9", "é"),
        (b"<?xml version='1.0' encoding='utf-8'?><html>\xc3\xa9", "é"),
    ],
)
def test_the_charset_is_found_as_browsers_do(content: bytes, expected: str) -> None:
    assert seen(content) == expected


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"<meta charset=utf-8>\xe9", "the page is not valid utf-8 (byte 20)"),
        (b"<meta charset=klingon>x", "the page's charset 'klingon' is unknown"),
        (b"<meta charset=hex>x", "the page's charset 'hex' is unknown"),
    ],
)
def test_a_page_that_can_not_be_decoded_is_a_bad_row(tmp_path: Path, content: bytes, error: str) -> None:
    path = tmp_path / "a.html"
    path.write_bytes(content)
    assert rows_of(path, PAGE) == ([], [(0, error)])


def test_title_and_path_are_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.htm"
    path.write_text("<title> a &amp;\n b </title><svg><title>no</title></svg><p>c")
    assert rows_of(path, PAGE) == ([{"text": "no\nc", "title": "a & b", "path": str(path)}], [])
    path.write_text("c")
    assert rows_of(path, PAGE) == ([{"text": "c", "title": "", "path": str(path)}], [])


def test_a_missing_library_is_found_at_planning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.html").write_text("x")
    spec = SourceSpec(path=str(tmp_path), text="text")
    monkeypatch.setitem(sys.modules, "selectolax.lexbor", None)
    with pytest.raises(InputError, match="extra `html`"):
        survey(list_sources(spec), spec)
