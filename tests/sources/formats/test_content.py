"""What the bytes of text files are: whatever packs and encodes a text, its rows come out, or the reason why not."""

import codecs
import gzip
import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import CsvSpec, LimitSpec, SourceSpec
from pipeline.errors import InputError
from pipeline.sources.formats import content
from pipeline.sources.listing import list_sources
from pipeline.sources.reader import SliceSpec, read_slices
from pipeline.sources.survey import survey
from pipeline.work import Unit
from tests.sources.formats.reading import rows_of

WORD = st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S"]), min_size=1, max_size=12)
MARKED = {"utf-8-sig": b"", "utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE,
          "utf-32-le": codecs.BOM_UTF32_LE, "utf-32-be": codecs.BOM_UTF32_BE}  # fmt: skip
PACK = {
    "": bytes,
    "gz": gzip.compress,
    "zst": zstandard.ZstdCompressor().compress,
    "both": lambda raw: gzip.compress(gzip.compress(raw)),
}


def as_format(name: str, texts: list[str]) -> str:
    if name == "jsonl":
        return "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    if name == "lines":
        return "".join(f"{text}\n" for text in texts)
    if name == "csv":
        rows = ['"' + text.replace('"', '""') + '"' for text in texts]
        return "\n".join(["text,n", *(f"{row},1" for row in rows), ""])
    return "\n".join(["text\tn", *(f"{text}\t1" for text in texts), ""])


def texts_of(folder: str, name: str, raw: bytes, suffix: str = "", **options: Any) -> list[str]:
    path = Path(folder) / (f"a.txt{suffix}" if name == "lines" else f"a.{name}{suffix}")
    path.write_bytes(raw)
    asked = {"format": "lines"} if name == "lines" else {}
    good, bad = rows_of(path, **asked, **options)
    assert bad == []
    return [row["text"] for row in good]


@pytest.mark.parametrize("name", ["jsonl", "lines", "csv", "tsv"])
@settings(max_examples=40, deadline=None)
@given(
    texts=st.lists(WORD, min_size=1, max_size=6),
    encoding=st.sampled_from(sorted(MARKED)),
    packed=st.sampled_from(sorted(PACK)),
    suffix=st.sampled_from(["", ".gz", ".zst"]),
)
def test_marks_and_first_bytes_decide_and_not_the_name(
    name: str, texts: list[str], encoding: str, packed: str, suffix: str
) -> None:
    raw = PACK[packed](MARKED[encoding] + as_format(name, texts).encode(encoding))
    with tempfile.TemporaryDirectory() as folder:
        assert texts_of(folder, name, raw, suffix) == texts


@pytest.mark.parametrize("name", ["jsonl", "lines", "csv", "tsv"])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_without_a_mark_nuls_between_letters_are_certain(tmp_path: Path, name: str, encoding: str) -> None:
    texts = ["a first line of text", "déjà vu, naïve", "third – one"]
    assert texts_of(str(tmp_path), name, as_format(name, texts).encode(encoding)) == texts


ASKED = {"latin-1": "é ÿ", "cp1252": "“é” €", "cp932": "日本語", "koi8-r": "текст", "utf-16-be": "中文"}


@pytest.mark.parametrize(("encoding", "text"), ASKED.items())
@pytest.mark.parametrize("name", ["jsonl", "lines", "csv", "tsv"])
def test_an_encoding_that_is_asked_for_is_used(tmp_path: Path, name: str, encoding: str, text: str) -> None:
    raw = as_format(name, [text, "x"]).encode(encoding)
    assert texts_of(str(tmp_path), name, raw, encoding=encoding) == [text, "x"]
    if not encoding.startswith("utf"):
        plain = {"format": "lines"} if name == "lines" else {}
        assert rows_of(tmp_path / ("a.txt" if name == "lines" else f"a.{name}"), **plain)[1]  # nothing of it is guessed


@settings(max_examples=200, deadline=None)
@given(raw=st.binary(max_size=200) | st.text(max_size=80).map(str.encode))
def test_what_is_utf8_is_never_taken_for_another_encoding(raw: bytes) -> None:
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return
    if "\0" not in text and not raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        assert content.encoding_of(raw, "auto") == "utf-8"


@pytest.mark.parametrize("line", ["00\0", "ab\0", "ab\0cd\0", "\0ab", "a\0b", "abcdef\0"])
def test_lines_that_c_wrote_are_no_utf_16(tmp_path: Path, line: str) -> None:
    for count in (4, 8, 40):
        assert content.encoding_of(f"{line}\n".encode() * count, "auto") == "utf-8"
        assert texts_of(str(tmp_path), "lines", f"{line}\n".encode() * count) == [line] * count


def test_a_byte_that_the_encoding_lacks_spoils_its_row_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("text,n\né,1\n\x81,2\nü,3\n".encode("latin-1"))
    good, bad = rows_of(path, encoding="cp1252")
    assert [row["text"] for row in good] == ["é", "ü"]
    assert [error for _, error in bad] == ["the record is not valid UTF-8"]


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 12345\n"


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv", "a.txt", "a.html", "a.md.gz", "a.parquet", "a.arrow"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_pointer_of_git_lfs_is_named_as_such(tmp_path: Path, name: str, end: str) -> None:
    path = tmp_path / name
    path.write_bytes(POINTER.replace("\n", end).encode())
    good, ((_, error),) = rows_of(path)
    assert good == []
    assert "git lfs pull" in error
    spec = SourceSpec(path=str(path), text="text")
    if path.suffix not in (".txt", ".html", ".gz"):
        with pytest.raises(InputError, match="git lfs pull"):
            survey(list_sources(spec), spec)
    if name == "a.txt":
        path.write_text(POINTER + "is what a pointer looks like")
        assert rows_of(path)[1] == []


@pytest.mark.parametrize("name", ["a.txt", "a.html", "a.csv", "a.tsv", "a.jsonl"])
def test_what_is_filled_with_nuls_is_no_text(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"text\n" + b"\0" * 600 if name[2] in "ct" and "sv" in name else b"\0" * 600)
    good, bad = rows_of(path)
    assert good == []
    assert len(bad) == 1


@pytest.mark.parametrize(
    ("raw", "what"), [(b"BZh91AY&SY...", "bzip2"), (b"PK\x03\x04rest", "a zip archive"), (b"\xfd7zXZ\0rest", "xz")]
)
def test_other_packings_are_named(tmp_path: Path, raw: bytes, what: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(raw)
    ((_, error),) = rows_of(tmp_path / "a.jsonl")[1]
    assert what in error


def long_window(content: bytes) -> bytes:
    """A zstd frame with a window of 2 GiB and one raw block, as `zstd --long=31` writes of a stream."""
    header = (0xFD2FB528).to_bytes(4, "little") + b"\0" + bytes([21 << 3])
    return header + (len(content) << 3 | 1).to_bytes(3, "little") + content


def test_long_windows_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.zst").write_bytes(long_window(b'{"text": "x"}\n'))
    assert rows_of(tmp_path / "a.jsonl.zst") == ([{"text": "x"}], [])
    broken = bytearray(long_window(b'{"text": "x"}\n'))
    broken[5] = 25 << 3
    (tmp_path / "a.jsonl.zst").write_bytes(broken)
    ((_, error),) = rows_of(tmp_path / "a.jsonl.zst")[1]
    assert "window of 34,359,738,368 bytes" in error
    assert "corrupt" not in error


# --- line ends and dialects of csv

FIELD = st.text(st.sampled_from('ab é",\t\\N|'), max_size=8)


@pytest.mark.parametrize("name", ["csv", "tsv"])
@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(st.tuples(FIELD, FIELD), min_size=1, max_size=5),
    ends=st.lists(st.sampled_from(["\r", "\r", "\r", "\n", "\r\n"]), min_size=6, max_size=6),
    last=st.booleans(),
)
def test_lone_carriage_returns_end_lines(name: str, rows: list[tuple[str, str]], ends: list[str], last: bool) -> None:
    ends = ["\r", *(end if ends.count("\r") > 3 else "\r" for end in ends[1:])]
    sign = "," if name == "csv" else "\t"

    def line(fields: tuple[str, ...]) -> str:
        if name == "csv":
            return sign.join('"' + field.replace('"', '""') + '"' for field in fields)
        return sign.join(field.replace("\t", " ") for field in fields)

    lines = [line(("n", "text")), *map(line, rows)]
    raw = "".join(text + end for text, end in zip(lines, ends, strict=False))
    raw = raw if last else raw.rstrip("\r\n")
    expected = [text if name == "csv" else text.replace("\t", " ") for _, text in rows]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a.{name}"
        path.write_bytes(raw.encode())
        good, bad = rows_of(path)
    # A line that is blank is no record, and one that the first lone end glues to another is a bad row: nothing goes unseen.
    assert [row["text"] for row in good] == expected
    assert bad == []


def test_a_file_of_one_line_that_is_no_header_is_a_bad_row(tmp_path: Path) -> None:
    for name, raw in (("a.csv", b"1,hello"), ("a.tsv", b"1\thello\n"), ("b.csv", b'"x"\r\n'), ("c.csv", b"a,b\r\r")):
        (tmp_path / name).write_bytes(raw)
        good, ((place, error),) = rows_of(tmp_path / name)
        assert (good, place) == ([], 0)
        assert "only line" in error
        assert "'text'" in error
    (tmp_path / "a.csv").write_bytes(b"id,text\n")  # of no rows, as many programs leave it
    assert rows_of(tmp_path / "a.csv") == ([], [])


def spark(value: str) -> str:
    """As Spark writes it: quoted where it must be, with backslashes before quotes and themselves."""
    if not set(value) & set('",\\\n\r'):
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


@settings(max_examples=200, deadline=None)
@given(texts=st.lists(st.text(st.sampled_from('ab",\\nN\né'), min_size=1, max_size=10), min_size=1, max_size=6))
def test_what_spark_escapes_comes_out_as_it_went_in(texts: list[str]) -> None:
    raw = "n,text\n" + "".join(f"{row},{spark(text)}\n" for row, text in enumerate(texts))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.csv"
        path.write_bytes(raw.encode())
        good, bad = rows_of(path, csv=CsvSpec(escape="\\"))
    assert ([row["text"] for row in good], bad) == (texts, [])


@settings(max_examples=200, deadline=None)
@given(
    texts=st.lists(st.none() | st.text(st.sampled_from("ab\t\\nN\n\ré."), max_size=10), min_size=1, max_size=6),
    writer=st.sampled_from(["postgresql", "mysql"]),
)
def test_what_databases_escape_comes_out_as_it_went_in(texts: list[str | None], writer: str) -> None:
    names = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"}
    if writer == "mysql":
        names = {"\\": "\\\\", "\t": "\\\t", "\n": "\\\n", "\r": "\\r"}
    lines = ["\\N" if text is None else "".join(names.get(sign, sign) for sign in text) for text in texts]
    raw = "n\ttext\n" + "".join(f"{row}\t{line}\n" for row, line in enumerate(lines)) + "\\.\n"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.tsv"
        path.write_bytes(raw.encode())
        good, bad = rows_of(path, csv=CsvSpec(escape="\\"))
    assert ([row["text"] for row in good], bad) == (texts, [])


def test_an_unclosed_quote_in_an_escaped_dialect_loses_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('n,text\n1,"open\\"\n2,b\n3,"c"\n')
    good, bad = rows_of(tmp_path / "a.csv", csv=CsvSpec(escape="\\"))
    assert [row["text"] for row in good] == ["b", "c"]
    assert bad == [(7, "the quotes are malformed: ',' expected after '\"'")] or bad == [(7, "a quote is not closed")]


# --- JSON


def test_what_is_no_json_number_costs_nothing_where_nobody_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"text": "a", "x": NaN}\n{"text": "b", "x": [-Infinity, {"y": Infinity}]}\n{"text": "c", "x": '
        + "9" * 5000
        + "}\n"
    )
    good, bad = rows_of(path)
    assert ([row["text"] for row in good], bad) == (["a", "b", "c"], [])
    good, bad = rows_of(path, pa.schema([("text", pa.string()), ("x", pa.float64())]))
    assert good == []
    assert len(bad) == 3


def test_a_string_of_the_schema_takes_numbers_as_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"text": 1, "l": [1.50, "x", null]}\n{"text": "b2", "l": null}\n{"text": 1e2, "l": []}\n{"text": true}\n'
    )
    asked = {"text": "string", "l": "list<string>"}
    spec = SourceSpec(path=str(path), text="text", keep=("l",), schema=asked)
    found = survey(list_sources(spec), spec)
    unit = Unit(unit_id="u", spans=found.spans[0], sources=(0,))
    (piece,) = read_slices(
        unit, SliceSpec(schema=found.schema, source=spec, carried=spec.keep, limits=LimitSpec(), rows=100)
    )
    assert piece.documents.select(["text", "l"]).to_pylist() == [
        {"text": "1", "l": ["1.50", "x", None]},
        {"text": "b2", "l": None},
        {"text": "1e2", "l": []},
    ]
    assert piece.dead_letters.num_rows == 1
    assert [row["text"] for row in rows_of(path)[0]] == ["b2"]  # nothing is taken for text where nobody says so


@pytest.mark.parametrize("late", [2.5, 2.0])
@pytest.mark.parametrize("place", [1, 499, 500, 3000, 8000])
def test_a_fraction_widens_its_column_wherever_it_comes(tmp_path: Path, late: float, place: int) -> None:
    lines = [json.dumps({"text": "x", "n": late if row == place else row}) for row in range(8001)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    spec = SourceSpec(path=str(tmp_path), text="text", keep=("n",))
    assert survey(list_sources(spec), spec).schema.field("n").type == pa.float64()


@pytest.mark.parametrize(
    "array",
    [
        '[\n{"text": "a"},\n{"text": "b"}\n]\n',
        '[{"text": "a"},\n{"text": "b"}]',
        "\n\n[\n]",
        '[{"text": "a"}, {"text": "b"}]',
        '\n[{"text": "a"}]\n\n',
    ],
)
def test_a_json_array_is_named_as_such(tmp_path: Path, array: str) -> None:
    (tmp_path / "a.jsonl").write_text(array)
    ((_, error),) = rows_of(tmp_path / "a.jsonl")[1]
    assert "one JSON array" in error
    spec = SourceSpec(path=str(tmp_path), text="text")
    with pytest.raises(InputError, match=r"a\.jsonl.*one JSON array"):
        survey(list_sources(spec), spec)
