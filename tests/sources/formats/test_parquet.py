import datetime
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import LimitSpec, SourceSpec
from pipeline.sources import filter
from pipeline.sources.columns import Block
from pipeline.sources.formats import registry
from pipeline.sources.listing import hive_partition, list_sources
from pipeline.sources.reader import SliceSpec, read_slices
from pipeline.sources.survey import survey
from pipeline.work import SourceFile, Span, Unit
from tests.sources.formats.reading import spec_of


class Counted(io.BytesIO):
    """Remembers which bytes were read."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.ranges: list[tuple[int, int]] = []

    def read(self, size: int | None = -1, /) -> bytes:
        start = self.tell()
        data = super().read(size)
        self.ranges.append((start, start + len(data)))
        return data

    def readinto(self, buffer: Any, /) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def touches(self, start: int, stop: int) -> bool:
        return any(first < stop and start < end for first, end in self.ranges)


def bytes_of(table: pa.Table, rows: int, **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=rows, **options)
    return sink.getvalue()


def read(content: bytes, text: str | None, schema: pa.Schema, path: str = "/a.parquet") -> tuple[list[Block], Counted]:
    file = SourceFile(path=path, size=len(content), version="v", format="parquet", partition=hive_partition(path))
    groups = pq.read_metadata(io.BytesIO(content)).num_row_groups
    span = Span(file=file, kind="row_groups", start=0, stop=groups, rows=None)
    opened = Counted(content)
    spec = spec_of(Path(path), where=text)
    return list(registry.blocks(opened, span, schema, spec, 2**20, lambda first, count: True)), opened


def numbers(blocks: Sequence[Block], text: str, column: str) -> list[Any]:
    found: list[Any] = []
    for block in blocks:
        if not block.excluded:
            found += block.columns.filter(pa.array(filter.matches(block.columns, text))).column(column).to_pylist()
    return found


TABLE = pa.table(
    {"text": [str(row) * 50 for row in range(4000)], "n": range(4000), "day": [datetime.date(2020, 1, 1)] * 4000}
)
SCHEMA = pa.schema([("text", pa.string()), ("n", pa.int64()), ("day", pa.date32())])


def test_row_groups_that_a_filter_rules_out_are_not_read() -> None:
    content = bytes_of(TABLE, 1000, compression="none", use_dictionary=False)
    blocks, opened = read(content, "n >= 1500 and n < 1600", SCHEMA)
    assert [block.rows for block in blocks if block.excluded] == [1000, 1000, 1000]
    assert sum(block.rows for block in blocks) == 4000
    assert all(block.columns is None for block in blocks if block.excluded)
    metadata = pq.read_metadata(io.BytesIO(content))
    touched = []
    for index in range(4):
        column = metadata.row_group(index).column(0)
        start = column.data_page_offset
        # The footer is read in one piece with what stands right before it: the first half says enough.
        touched.append(opened.touches(start, start + column.total_compressed_size // 2))
    assert touched == [False, True, False, False]


def test_folders_rule_row_groups_out_too() -> None:
    schema = pa.schema([*SCHEMA, ("lang", pa.string()), ("year", pa.int64())])
    path = "/lang=de/year=2020/a.parquet"
    for text, expected in [
        ('lang == "en"', 4000),
        ('lang == "de"', 0),
        ("year > 2020", 4000),
        ('lang == "en" or n >= 3000', 3000),
        ("lang is None", 4000),
    ]:
        blocks, _ = read(bytes_of(TABLE, 1000), text, schema, path)
        assert sum(block.rows for block in blocks if block.excluded) == expected, text
    blocks, _ = read(bytes_of(TABLE, 1000), "lang is None", schema, "/lang=__HIVE_DEFAULT_PARTITION__/a.parquet")
    assert not any(block.excluded for block in blocks)


@pytest.mark.parametrize(
    ("kind", "planned", "text"),
    [
        (pa.int64(), pa.string(), 'k == "7"'),
        (pa.string(), pa.int64(), "k > 100"),
        (pa.float64(), pa.float64(), "not (k < 100)"),
        (pa.timestamp("us"), pa.string(), 'k > "2"'),
    ],
)
def test_what_can_not_be_told_from_the_files_own_types_rules_nothing_out(
    kind: pa.DataType, planned: pa.DataType, text: str
) -> None:
    table = pa.table({"k": pa.array(range(10), pa.int64()).cast(kind), "text": ["x"] * 10})
    schema = pa.schema([("text", pa.string()), ("k", planned)])
    blocks, _ = read(bytes_of(table, 5), text, schema)
    assert not any(block.excluded for block in blocks)


def test_a_column_that_the_file_lacks_rules_nothing_out_by_mistake() -> None:
    schema = pa.schema([*SCHEMA, ("other", pa.int64())])
    for text in ("other is None", "other is None and n >= 0", "n < 10 or other is None"):
        blocks, _ = read(bytes_of(TABLE, 1000), text, schema)
        assert not any(block.excluded for block in blocks), text


VALUES = st.lists(st.none() | st.integers(-5, 5), min_size=1, max_size=30)


@settings(max_examples=200, deadline=None)
@given(
    values=VALUES,
    rows=st.integers(1, 8),
    text=st.sampled_from(
        [
            "n == 3",
            "n != 3",
            "n > 2 or n < -2",
            "not (n > 2)",
            "n in [1, 5]",
            "n not in [1, 5]",
            "n is None",
            "n is not None",
        ]
    ),
    kind=st.sampled_from([pa.int8(), pa.int64(), pa.float32(), pa.dictionary(pa.int32(), pa.string()), pa.string()]),
)
def test_no_row_that_passes_is_ever_ruled_out(
    values: list[int | None], rows: int, text: str, kind: pa.DataType
) -> None:
    column = pa.array(values, pa.int64())
    if pa.types.is_string(kind) or pa.types.is_dictionary(kind):
        column, text = column.cast(pa.string()).cast(kind), text.replace("[1, 5]", '["1", "5"]')
        for number in ("-2", "2", "3"):
            text = text.replace(f" {number}", f' "{number}"')
    table = pa.table({"n": column.cast(kind), "text": ["x"] * len(values)})
    schema = pa.schema([("text", pa.string()), ("n", kind)])
    blocks, _ = read(bytes_of(table, rows), text, schema)
    expected = table.filter(pa.array(filter.matches(table, text))).column("n").to_pylist()
    assert numbers(blocks, text, "n") == expected


def test_nan_is_not_ruled_out() -> None:
    table = pa.table({"n": np.array([1.0, np.nan, 2.0]), "text": ["x"] * 3})
    schema = pa.schema([("text", pa.string()), ("n", pa.float64())])
    text = "not (n < 5)"
    blocks, _ = read(bytes_of(table, 3), text, schema)
    assert len(numbers(blocks, text, "n")) == int(filter.matches(table, text).sum())


def int96_parquet(path: Path, micros: list[int | None]) -> None:
    """A file as Spark and Impala write it: an instant is a day (Julian) and nanoseconds of it; pyarrow itself writes none
    outside the years that its nanoseconds have, so that the 12 bytes are put in afterwards."""
    stand_ins = [None if value is None else 1 + 7 * index for index, value in enumerate(micros)]
    at = pa.array(stand_ins, pa.timestamp("ns"))
    nested = pa.ListArray.from_arrays(pa.array(range(len(at) + 1), pa.int32()), at)
    table = pa.table({"text": ["x"] * len(micros), "at": at, "l": nested})
    plain = {"compression": "none", "use_dictionary": False, "store_schema": False, "write_statistics": False}
    pq.write_table(table, path, use_deprecated_int96_timestamps=True, **plain)
    content = path.read_bytes()
    for index, value in enumerate(micros):
        if value is not None:
            days, rest = divmod(value, 86_400 * 10**6)
            stored = (1 + 7 * index).to_bytes(8, "little") + (2_440_588).to_bytes(4, "little")
            assert content.count(stored) == 2, index
            meant = (rest * 1000).to_bytes(8, "little") + (days + 2_440_588).to_bytes(4, "little")
            content = content.replace(stored, meant)
    path.write_bytes(content)


FIRST, LAST = -62_135_596_800_000_000, 253_402_300_799_999_999
"""The instants of the years 1 to 9999, in microseconds."""


@settings(max_examples=30, deadline=None)
@given(
    micros=st.lists(st.none() | st.integers(FIRST, LAST) | st.sampled_from([FIRST, LAST, 0]), min_size=1, max_size=20)
)
def test_int96_is_an_instant_of_any_year(micros: list[int | None]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.parquet"
        int96_parquet(path, micros)
        spec = SourceSpec(path=str(path), text="text", keep=("at", "l"), where='at > timestamp("1600-01-01T00:00:00")')
        found = survey(list_sources(spec), spec)
        assert found.schema.field("at").type == pa.timestamp("us")
        unit = Unit(unit_id="u", spans=found.spans[0], sources=(0,))
        pieces = [
            *read_slices(
                unit, SliceSpec(schema=found.schema, source=spec, carried=spec.keep, limits=LimitSpec(), rows=100)
            )
        ]
        rows = pa.concat_tables([piece.documents for piece in pieces])
    expected = [value for value in micros if value is not None and value > -11_676_096_000_000_000]
    assert rows.column("at").cast(pa.int64()).to_pylist() == expected
    assert pc.list_flatten(rows.column("l")).cast(pa.int64()).to_pylist() == expected


def test_int96_can_be_an_id(tmp_path: Path) -> None:
    int96_parquet(tmp_path / "a.parquet", [FIRST, LAST])
    spec = SourceSpec(path=str(tmp_path), text="text", id="at")
    found = survey(list_sources(spec), spec)
    unit = Unit(unit_id="u", spans=found.spans[0], sources=(0,))
    (piece,) = read_slices(unit, SliceSpec(schema=found.schema, source=spec, carried=(), limits=LimitSpec(), rows=9))
    assert piece.documents.column("id").to_pylist() == ["0001-01-01 00:00:00.000000", "9999-12-31 23:59:59.999999"]
