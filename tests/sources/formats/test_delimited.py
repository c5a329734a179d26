import datetime
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.config import CsvSpec
from pipeline.sources.formats import registry
from tests.sources.formats.reading import blocks_of, rows_of, source_file, spec_of


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def texts(rows: list[dict[str, Any]]) -> list[str]:
    return [row["text"] for row in rows]


def test_embedded_line_ends_and_quotes_are_kept_exactly(tmp_path: Path) -> None:
    content = '\ufeffid,text\r\n1,"a\r\nb\n\n""c"""\r\n\r\n2,x\ry\r\n3,"p\rq"\n4,say "hi"'
    good, bad = rows_of(write(tmp_path / "a.csv", content))
    assert texts(good) == ['a\r\nb\n\n"c"', "x\ry", "p\rq", 'say "hi"']
    assert bad == []
    (block,) = blocks_of(tmp_path / "a.csv")
    raw = content.encode()
    assert block.positions.to_pylist() == [raw.index(b'1,"a'), raw.index(b"2,x"), raw.index(b"3,"), raw.index(b"4,")]


@pytest.mark.parametrize(
    ("bad_lines", "error"),
    [
        (b"1\n", "the record has 1 fields, not 2 as the header"),
        (b"1,x,\n", "the record has 3 fields, not 2 as the header"),
        (b'1,"x\ny","z"\n', "the record has 3 fields, not 2 as the header"),
        (b"1,\xff\n", "the record is not valid UTF-8"),
        (b'1,"\xff\n\xfe"\n', "the record is not valid UTF-8"),
        (b'1,"x"y\n', "the quotes are malformed: ',' expected after '\"'"),
        (b"1," + b"x" * 300 + b"\n", "the line is longer than limits.max_row_bytes (200)"),
    ],
)
def test_a_bad_record_is_one_bad_row(tmp_path: Path, bad_lines: bytes, error: str) -> None:
    path = write(tmp_path / "a.csv", b"id,text\n0,a\n" + bad_lines + b"2,b\n3,c\n")
    good, bad = rows_of(path, max_row_bytes=200)
    assert texts(good) == ["a", "b", "c"]
    assert bad == [(12, error)]


def test_after_an_unclosed_quote_nothing_is_lost(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'id,text\n0,a\n1,"open\n2,b\n\n3,c\n')
    good, bad = rows_of(path)
    assert texts(good) == ["a", "b", "c"]
    assert bad == [(12, "a quote is not closed")]


def test_after_a_record_over_the_limit_reading_goes_on_at_its_second_line(tmp_path: Path) -> None:
    lines = "".join(f"{row},{'y' * 20}\n" for row in range(2, 40))
    path = write(tmp_path / "a.csv", f'id,text\n0,a\n1,"open\n{lines}40,"z"\n')
    good, bad = rows_of(path, max_row_bytes=100)
    assert texts(good) == ["a", *["y" * 20] * 38, "z"]
    assert bad == [(12, "the record is longer than limits.max_row_bytes (100)")]


def test_a_long_line_inside_quotes_is_a_bad_row_of_its_own(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'id,text\n0,a\n1,"open\n2,b\n3,' + "x" * 500 + "\n4,c\n")
    good, bad = rows_of(path, max_row_bytes=100)
    assert texts(good) == ["a", "b", "c"]
    assert [error for _, error in bad] == [
        "the record is longer than limits.max_row_bytes (100)",
        "the line is longer than limits.max_row_bytes (100)",
    ]


def test_stray_quotes_on_every_line_are_read_in_one_pass(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "id,text\n" + '1,"open\n' * 20_000)
    begun = time.perf_counter()
    good, bad = rows_of(path)
    assert len(good) + len(bad) == 20_000
    assert time.perf_counter() - begun < 10


@pytest.mark.parametrize("count", [200_000])
def test_an_unclosed_quote_before_many_lines_holds_bytes_only(tmp_path: Path, count: int) -> None:
    path = write(tmp_path / "a.csv", 'id,text\n0,"open\n' + "1,b\n" * count)
    good, bad = rows_of(path)
    assert len(good) == count
    assert len(bad) == 1


def test_a_field_may_be_longer_than_the_default_of_the_csv_module(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'text\n"' + "x" * 500_000 + '"\n')
    good, bad = rows_of(path)
    assert [len(text) for text in texts(good)] == [500_000]
    assert bad == []


def test_a_dialect_of_ones_own_and_files_without_header(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "1;'a;b'\n2;it''s\n")
    asked = CsvSpec(delimiter=";", quote="'", columns=("id", "text"))
    good, bad = rows_of(path, csv=asked)
    assert (texts(good), bad) == (["a;b", "it''s"], [])
    good, bad = rows_of(path, csv=CsvSpec(delimiter=";", quote="", columns=("id", "text")))
    assert (texts(good), bad) == (["it''s"], [(0, "the record has 3 fields, not 2 as the header")])
    assert registry.extent(source_file(path), None, spec_of(path, csv=CsvSpec(quote=""))).divisible
    assert not registry.extent(source_file(path), None, spec_of(path)).divisible


def test_tsv_has_no_quotes_unless_asked(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", 'id\ttext\n1\t"a\n2\t"b"\n')
    assert texts(rows_of(path)[0]) == ['"a', '"b"']
    assert rows_of(path, csv=CsvSpec(quote='"'))[1][0][1] in (
        "a quote is not closed",
        "the quotes are malformed: '\t' expected after '\"'",
    )


def test_values_get_the_planned_types(tmp_path: Path) -> None:
    schema = pa.schema(
        [
            ("text", pa.string()),
            ("n", pa.int64()),
            ("f", pa.float64()),
            ("d", pa.decimal128(9, 2)),
            ("day", pa.date32()),
            ("at", pa.timestamp("us", "UTC")),
            ("b", pa.binary()),
            ("t", pa.time64("us")),
            ("lasts", pa.duration("s")),
            ("ok", pa.bool_()),
        ]
    )
    header = "text,n,f,d,day,at,b,t,lasts,ok\n"
    path = write(
        tmp_path / "a.csv", header + "x,1,1.5,1.50,2020-01-31,2020-01-31T12:00:00Z,AP8=,12:30:00,PT1M,true\n" + "," * 9
    )
    good, bad = rows_of(path, schema)
    assert bad == []
    assert good[0] == {
        "text": "x",
        "n": 1,
        "f": 1.5,
        "d": Decimal("1.50"),
        "day": datetime.date(2020, 1, 31),
        "at": datetime.datetime(2020, 1, 31, 12, tzinfo=datetime.UTC),
        "b": b"\x00\xff",
        "t": datetime.time(12, 30),
        "lasts": datetime.timedelta(minutes=1),
        "ok": True,
    }
    assert good[1] == {**dict.fromkeys(schema.names), "text": ""}


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (pa.int8(), "300"),
        (pa.int64(), "1.0"),
        (pa.int64(), "0x1f"),
        (pa.float64(), "1e999"),
        (pa.decimal128(9, 2), "1.505"),
        (pa.date32(), "2020-02-30"),
        (pa.timestamp("s"), "2020-01-01T00:00:00.5"),
        (pa.timestamp("us"), "2020-01-01T00:00:00Z"),
        (pa.binary(), "not base64"),
        (pa.binary(3), "AP8="),
        (pa.duration("s"), "PT0.5S"),
        (pa.duration("s"), "P1M"),
        (pa.time32("s"), "25:00:00"),
        (pa.list_(pa.int64()), "[1]"),
    ],
)
def test_a_value_that_does_not_fit_is_a_bad_row(tmp_path: Path, kind: pa.DataType, value: str) -> None:
    path = write(tmp_path / "a.csv", f'text,k\nx,"{value}"\ny,\n')
    good, bad = rows_of(path, pa.schema([("text", pa.string()), ("k", kind)]))
    assert texts(good) == ["y"]
    assert [error.startswith("column 'k' ") for _, error in bad] == [True]


def test_columns_that_a_file_lacks_are_null(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "other,text\n1,x\n")
    good, _ = rows_of(path, pa.schema([("text", pa.string()), ("k", pa.int64())]))
    assert good == [{"text": "x", "k": None}]


@pytest.mark.parametrize("size", [None, 3])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_under_a_header_that_cannot_be_used_every_record_is_a_bad_row(
    tmp_path: Path, name: str, size: int | None
) -> None:
    path = write(tmp_path / name, b"\xff,text\n1,x\n2,y\n")
    good, bad = rows_of(path, size=size)
    assert good == []
    reason = "the file's header can't be used: the record is not valid UTF-8"
    assert bad == [(0, reason), (7, reason), (11, reason)]
    write(path, b"text,text\n1,x\n" if name == "a.csv" else b"text\ttext\n1\tx\n")
    reason = "the file's header can't be used: it has more than one column 'text'"
    assert rows_of(path, size=size)[1] == [(0, reason), (10, reason)]


def test_an_empty_file_has_no_rows(tmp_path: Path) -> None:
    for content in ("", "\n\n", "id,text\n"):
        assert rows_of(write(tmp_path / "a.csv", content)) == ([], [])
