"""The hashes are pinned: a change here makes every table out there look new."""

import datetime
import decimal

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipeline import identity
from pipeline.unit import SourceFile, Span

FILE = SourceFile(path="/data/a.parquet", size=10, version="10-1", format="parquet")


def span(start: int = 0, stop: int = 1, file: SourceFile = FILE) -> Span:
    return Span(file=file, kind="row_groups", start=start, stop=stop, rows=5)


def test_golden_content_hash():
    hashes = identity.content_hashes(pa.array(["hello", ""]), "query: ").to_pylist()
    assert [value.hex() for value in hashes] == [
        "5a02909bd86e3073e471ffad8661e539",
        "4be9899f6423ae15b4e23917cd206455",
    ]


def test_golden_row_hash():
    rows = pa.table({"title": ["a", None], "n": pa.array([1, None], pa.int64()), "x": [1.5, -0.0]})
    assert identity.row_hashes(rows).to_pylist() == [8673820031008100414, -662685111241768337]


def test_golden_unit_id_and_fingerprint():
    assert identity.unit_id([span()], "output", "model") == "01b5d86516a0aa4d27328ded21726d9f"
    assert identity.fingerprint({"model": "m", "prompt": ""}, "float32") == "a909557cf50c74ad7027e2a6882d307c"


def test_the_content_hash_covers_exactly_prompt_and_text():
    one = identity.content_hashes(pa.array(["b c"]), "a ")
    other = identity.content_hashes(pa.array(["a b c"]), "")
    assert one.equals(other)


def test_the_type_that_holds_a_text_does_not_matter():
    texts = ["x", "é", ""]
    expected = identity.content_hashes(pa.array(texts, pa.string()), "")
    assert identity.content_hashes(pa.array(texts, pa.large_string()), "").equals(expected)
    assert identity.content_hashes(pa.chunked_array([texts[:1], texts[1:]]), "").equals(expected)


def test_a_row_hash_sees_null_apart_from_empty_and_borders_between_columns():
    rows = [("", None), (None, ""), ("ab", "c"), ("a", "bc"), ("", "")]
    table = pa.table({"a": pa.array([a for a, _ in rows]), "b": pa.array([b for _, b in rows])})
    assert len(set(identity.row_hashes(table).to_pylist())) == len(rows)


def test_every_arrow_type_of_a_kept_column_has_a_row_hash():
    values = [
        pa.array([datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC), None]),
        pa.array([decimal.Decimal("1.10"), decimal.Decimal("1.20")]),
        pa.array([[1, 2], None]),
        pa.array([{"a": 1, "b": "x"}, {"a": None, "b": "x"}]),
        pa.array([b"\xff", b""]),
        pa.array(["a", "b"]).dictionary_encode(),
        pa.array([True, None]),
        pa.array([1.0, 2.0], pa.float16()),
    ]
    for column in values:
        hashes = identity.row_hashes(pa.table({"x": column})).to_pylist()
        assert len(set(hashes)) == 2, column.type


@given(st.lists(st.text(), max_size=20))
def test_row_hashes_depend_on_the_row_alone(values):
    whole = identity.row_hashes(pa.table({"a": pa.array(values, pa.string())})).to_pylist()
    alone = [identity.row_hashes(pa.table({"a": pa.array([value], pa.string())}))[0].as_py() for value in values]
    assert whole == alone


def test_a_unit_changes_with_its_span_its_files_version_the_output_and_the_model():
    base = identity.unit_id([span()], "o", "f")
    newer = SourceFile(path=FILE.path, size=10, version="10-2", format="parquet")
    others = [
        identity.unit_id([span(0, 2)], "o", "f"),
        identity.unit_id([span(file=newer)], "o", "f"),
        identity.unit_id([span(), span(1, 2)], "o", "f"),
        identity.unit_id([span()], "p", "f"),
        identity.unit_id([span()], "o", "g"),
    ]
    assert len({base, *others}) == 6
