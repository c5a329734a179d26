"""Types live longer than a night: a new file's values come out equal in the table, or the run ends before any work."""

import datetime
import json
import warnings
from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.config import RunSpec
from pipeline.errors import InputError, RunError
from pipeline.execution.local.executor import LocalExecutor
from pipeline.runs import embed as embedding
from pipeline.runs import prepare
from pipeline.runs import reindex as reindexing
from pipeline.runs.plan_summary import summarise_plan
from pipeline.sources.formats import jsonl
from pipeline.storage import Folder
from pipeline.table import snapshot
from tests import inline
from tests.inline import read_table, same_rows, spec_of

Values = st.SearchStrategy[Any]
MOMENTS = st.datetimes(datetime.datetime(1970, 1, 1), datetime.datetime(2200, 1, 1))


def integers(bits: int, signed: bool = True) -> Values:
    least = -(2 ** (bits - 1)) if signed else 0
    return st.integers(least, least + 2**bits - 1) | st.integers(0, 100)


def decimals(digits: int, places: int) -> Values:
    most = Decimal(10**digits - 1).scaleb(-places)
    return st.decimals(-most, most, places=places) | st.integers(0, 9).map(Decimal)


def whole(step: int) -> Callable[[datetime.datetime], datetime.datetime]:
    return lambda moment: moment.replace(microsecond=moment.microsecond // step * step)


LEAVES: Mapping[pa.DataType, Values] = {
    pa.null(): st.none(),
    pa.bool_(): st.booleans(),
    pa.int8(): integers(8),
    pa.int16(): integers(16),
    pa.int32(): integers(32),
    pa.int64(): integers(64),
    pa.uint8(): integers(8, signed=False),
    pa.uint32(): integers(32, signed=False),
    pa.uint64(): integers(64, signed=False),
    pa.float32(): st.floats(width=32, allow_nan=False) | st.integers(0, 9).map(float),
    pa.float64(): st.floats(allow_nan=False) | st.integers(0, 9).map(float),
    pa.decimal128(5, 2): decimals(5, 2),
    pa.decimal128(9, 4): decimals(9, 4),
    pa.decimal128(30, 1): decimals(30, 1),
    pa.timestamp("s"): MOMENTS.map(whole(10**6)),
    pa.timestamp("ms"): MOMENTS.map(whole(1000)),
    pa.timestamp("us"): MOMENTS,
    pa.timestamp("us", "UTC"): MOMENTS.map(lambda moment: moment.replace(tzinfo=datetime.UTC)),
    pa.date32(): MOMENTS.map(datetime.datetime.date),
    pa.string(): st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=3) | st.just("7"),
    pa.binary(): st.binary(max_size=3),
    pa.binary(2): st.binary(min_size=2, max_size=2),
    pa.dictionary(pa.int32(), pa.string()): st.sampled_from(["x", "y"]),
}
FAMILIES = [
    [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint32()],
    [pa.float32(), pa.float64()],
    [pa.decimal128(5, 2), pa.decimal128(9, 4), pa.decimal128(30, 1)],
    [pa.timestamp("s"), pa.timestamp("ms"), pa.timestamp("us")],
    [pa.binary(), pa.binary(2)],
    [pa.string(), pa.dictionary(pa.int32(), pa.string())],
]
"""Any type of a family can become any other."""
KINDS = st.deferred(lambda: st.sampled_from(list(LEAVES)) | structs(st.sampled_from(list(LEAVES))) | lists())


def structs(kinds: st.SearchStrategy[pa.DataType]) -> st.SearchStrategy[pa.DataType]:
    return st.dictionaries(st.sampled_from("abc"), kinds, min_size=1, max_size=3).map(lambda d: pa.struct(d.items()))


def lists() -> st.SearchStrategy[pa.DataType]:
    return st.sampled_from(list(LEAVES)).map(pa.list_)


def values_of(kind: pa.DataType) -> Values:
    if pa.types.is_struct(kind):
        one: Values = st.fixed_dictionaries({item.name: values_of(item.type) for item in kind})
    elif pa.types.is_list(kind):
        one = st.lists(values_of(kind.value_type), max_size=2)
    else:
        one = LEAVES[kind]
    return st.none() | one


@st.composite
def nights(draw: st.DrawFn, pairs: st.SearchStrategy[tuple[pa.DataType, pa.DataType]]) -> tuple[pa.Array, pa.Array]:
    """The values of the first night and those of the second."""
    kinds = draw(pairs)
    found = [pa.array(draw(st.lists(values_of(kind), min_size=1, max_size=3)), kind) for kind in kinds]
    return found[0], found[1]


IN_FAMILY = st.one_of(
    [st.tuples(st.sampled_from(family), st.sampled_from(family)) for family in FAMILIES]
    + [st.tuples(st.just(pa.null()), st.sampled_from(list(LEAVES)))]
    + [st.tuples(st.just(pa.struct({"a": pa.int32()})), st.just(pa.struct({"a": pa.int64(), "b": pa.string()})))]
)


def write(path: Path, values: pa.Array) -> None:
    names = [f"{path.stem}{n}" for n in range(len(values))]
    pq.write_table(pa.table({"id": names, "text": [f"text {n}" for n in names], "n": values}), path)


def spec_for(folder: Path, model: Path, **sections: Any) -> RunSpec:
    return spec_of(folder / "corpus", model, folder / "table", **{"source": {"keep": ["n"]}} | sections)


def current(spec: RunSpec) -> snapshot.Snapshot:
    return snapshot.current(Folder(spec.table.path))


def everything_in(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run(spec: RunSpec, by_row: bool) -> snapshot.Snapshot:
    return inline.reindex(spec) if by_row else inline.embed(spec)


# --- what readers see


def with_pandas(folder: Path) -> pa.Table:
    import pandas

    return pa.Table.from_pandas(pandas.read_parquet(folder, dtype_backend="pyarrow"), preserve_index=False)


def with_polars(folder: Path) -> pa.Table:
    import polars

    return polars.read_parquet(f"{folder}/**/*.parquet").to_arrow()


def with_duckdb(folder: Path) -> pa.Table:
    import duckdb

    with duckdb.connect() as connection:
        connection.sql("set timezone = 'UTC'")
        return connection.sql(f"select id, n from read_parquet('{folder}/**/*.parquet')").to_arrow_table()


READERS = {"pyarrow": pq.read_table, "pandas": with_pandas, "polars": with_polars, "duckdb": with_duckdb}


def plain(value: Any) -> Any:
    """The value, whatever type a reader gives it: a key of a struct that has no value is none, a number is a number."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items() if item is not None}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value.replace(tzinfo=None) if isinstance(value, datetime.datetime) else value


def readers_agree(table: Path, *found: pa.Array) -> None:
    expected = {
        f"{name}{n}": plain(value)
        for name, values in zip("ab", found, strict=False)
        for n, value in enumerate(values.to_pylist())
    }
    parts = [pq.read_schema(part) for part in (table / "data").rglob("*.parquet")]
    assert all(part.equals(parts[0], check_metadata=True) for part in parts)
    for name, read in READERS.items():
        rows = read(table / "data")
        values = map(plain, rows.column("n").to_pylist())
        assert dict(zip(rows.column("id").to_pylist(), values, strict=True)) == expected, name


# --- pairs of types


def two_nights(old: pa.Array, new: pa.Array, by_row: bool, model: Path, folder: Path) -> snapshot.Snapshot | None:
    """The version of the second night; None where it was refused as it should be."""
    (folder / "corpus").mkdir()
    write(folder / "corpus" / "a.parquet", old)
    spec = spec_for(folder, model)
    inline.embed(spec)
    stands = snapshot.hex_to_schema(current(spec).source_schema).field("n").type
    write(folder / "corpus" / "b.parquet", new)
    said_by_file = pq.read_schema(folder / "corpus" / "b.parquet").field("n").type
    before = everything_in(folder / "table")
    try:
        version = run(spec, by_row)
    except InputError as refused:
        said = str(refused)
        assert all(word in said for word in (str(stands), str(said_by_file), "b.parquet", "source.exclude")), said
        assert everything_in(folder / "table") == before
        return None
    assert (version.counts.failed, version.counts.rows) == (0, len(old) + len(new))
    widened = snapshot.hex_to_schema(version.source_schema).field("n").type != stands
    if by_row or widened:  # by units a small file is encoded with those that share its unit
        assert version.counts.encoded == len(new)
    readers_agree(folder / "table", old, new)
    assert prepare.prepare(spec, writes=False).plan.changes_nothing
    return version


FEW = settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
MANY = settings(FEW, max_examples=60)


@FEW
@given(found=nights(st.tuples(KINDS, KINDS)), by_row=st.booleans())
def test_values_of_any_type_come_out_equal_or_end_the_run_before_work(found, by_row, tiny_model, tmp_path_factory):
    two_nights(*found, by_row, tiny_model, tmp_path_factory.mktemp("types"))


@pytest.mark.slow
@MANY
@given(found=nights(st.tuples(KINDS, KINDS)), by_row=st.booleans())
def test_so_do_those_of_many_more_types(found, by_row, tiny_model, tmp_path_factory):
    two_nights(*found, by_row, tiny_model, tmp_path_factory.mktemp("types"))


@FEW
@given(found=nights(IN_FAMILY), by_row=st.booleans())
def test_types_of_one_family_are_never_refused(found, by_row, tiny_model, tmp_path_factory):
    assert two_nights(*found, by_row, tiny_model, tmp_path_factory.mktemp("types")) is not None


@pytest.mark.slow
@MANY
@given(found=nights(IN_FAMILY), by_row=st.booleans())
def test_nor_are_many_more_of_them(found, by_row, tiny_model, tmp_path_factory):
    assert two_nights(*found, by_row, tiny_model, tmp_path_factory.mktemp("types")) is not None


def test_where_all_values_fit_nothing_is_rewritten(tiny_model, tmp_path):
    version = two_nights(pa.array([1], pa.int32()), pa.array([2], pa.int64()), True, tiny_model, tmp_path)
    assert version is not None
    assert version.counts.reused == 1
    assert pa.types.is_int32(read_table(tmp_path / "table").schema.field("n").type)


@pytest.mark.parametrize("by_row", [False, True])
def test_a_wider_type_says_what_it_costs_and_encodes_nothing_again(by_row, tiny_model, tmp_path):
    (tmp_path / "corpus").mkdir()
    write(tmp_path / "corpus" / "a.parquet", pa.array(range(50), pa.int32()))
    spec = spec_for(tmp_path, tiny_model)
    inline.embed(spec)
    first = read_table(tmp_path / "table")
    write(tmp_path / "corpus" / "b.parquet", pa.array([2**40], pa.int64()))
    told = f"column 'n' from int32 to int64 for '{tmp_path}/corpus/b.parquet'; all of the table (1 file, "
    planned = summarise_plan(prepare.prepare(spec, writes=False), inline.InProcess())
    assert told in str(planned)
    assert (planned.units_to_encode, planned.units_reused) == (1, 0)  # both files are of one unit
    assert told in str(reindexing.plan(spec, LocalExecutor(spec.resources)))
    encoded: list[int] = []
    executor = inline.InProcess(encoded=encoded)
    runner = reindexing.reindex if by_row else embedding.embed
    summary = runner(spec, executor)
    assert told in str(summary)
    assert sum(encoded) == summary.counts.encoded == 1
    same_rows(read_table(tmp_path / "table").slice(0, 50).drop_columns("n"), first.drop_columns("n"))
    assert prepare.prepare(spec, writes=False).plan.changes_nothing


def test_a_killed_widening_goes_on(tiny_model, tmp_path):
    (tmp_path / "corpus").mkdir()
    write(tmp_path / "corpus" / "a.parquet", pa.array(range(50), pa.int32()))
    spec = spec_for(tmp_path, tiny_model, limits={"unit_rows": 10})
    inline.embed(spec)
    write(tmp_path / "corpus" / "b.parquet", pa.array(range(2**40, 2**40 + 50), pa.int64()))
    with pytest.raises(inline.Died):
        inline.embed(spec, stop_after=2)
    version = inline.embed(spec)
    assert (version.version, version.counts.rows) == (2, 100)
    readers_agree(tmp_path / "table", pa.array(range(50)), pa.array(range(2**40, 2**40 + 50)))


def test_a_type_that_source_schema_gives_a_table_encodes_nothing_again(tiny_model, tmp_path):
    (tmp_path / "corpus").mkdir()
    write(tmp_path / "corpus" / "a.parquet", pa.array([1, 2], pa.int32()))
    inline.embed(spec_for(tmp_path, tiny_model))
    spec = spec_for(tmp_path, tiny_model, source={"keep": ["n"], "schema": {"n": "double"}})
    assert "column 'n' from int32 to double by source.schema" in str(
        summarise_plan(prepare.prepare(spec, writes=False), inline.InProcess())
    )
    version = inline.embed(spec)
    assert (version.counts.rows, version.counts.encoded) == (2, 0)
    assert pa.types.is_float64(read_table(tmp_path / "table").schema.field("n").type)
    readers_agree(tmp_path / "table", pa.array([1, 2]))


# --- columns that the table's files don't hold


def ids_of(table: Path) -> list[str]:
    return read_table(table).column("id").to_pylist()


@pytest.mark.parametrize("by_row", [False, True])
def test_integer_ids_partitions_and_filters_widen_without_a_file_rewritten(by_row, tiny_model, tmp_path):
    def write_numbers(name: str, kind: pa.DataType, numbers: list[int]) -> None:
        columns = {key: pa.array(numbers, kind) for key in ("id", "year", "size")}
        pq.write_table(
            pa.table(columns | {"text": [f"text {n}" for n in numbers]}), tmp_path / "corpus" / f"{name}.parquet"
        )

    (tmp_path / "corpus").mkdir()
    write_numbers("a", pa.int16(), [1, 2, 3])
    spec = spec_for(tmp_path, tiny_model, source={"where": "size > 1"}, table={"partition_by": ["year"]})
    inline.embed(spec)
    first = current(spec)
    write_numbers("b", pa.int64(), [2**40, 1])
    second = run(spec, by_row)
    assert ids_of(tmp_path / "table") == sorted(["2", "3", str(2**40)])
    assert second.counts.failed == 0
    assert not by_row or {part.path for part in first.parts} <= {part.path for part in second.parts}
    write_numbers("c", pa.int32(), [70_000])
    third = run(spec, by_row)
    assert (third.counts.new, third.counts.changed, third.counts.failed) == (1, 0, 0)
    assert not by_row or {part.path for part in second.parts} <= {part.path for part in third.parts}


def test_ids_that_would_be_written_otherwise_end_the_run_before_work(tiny_model, tmp_path):
    (tmp_path / "corpus").mkdir()
    for name, kind, value in (("a", pa.decimal128(5, 2), "1.25"), ("b", pa.decimal128(9, 4), "1.2512")):
        table = pa.table({"id": pa.array([Decimal(value)], kind), "text": ["x"]})
        pq.write_table(table, tmp_path / f"{name}.parquet")
    (tmp_path / "a.parquet").rename(tmp_path / "corpus" / "a.parquet")
    spec = spec_for(tmp_path, tiny_model, source={})
    inline.embed(spec)
    (tmp_path / "b.parquet").rename(tmp_path / "corpus" / "b.parquet")
    with pytest.raises(InputError, match=r"makes the ids, is decimal128\(5, 2\).*decimal128\(9, 4\).*b\.parquet"):
        inline.embed(spec)
    assert ids_of(tmp_path / "table") == ["1.25"]


# --- JSON

JSON = st.recursive(
    st.none() | st.integers(-(2**40), 2**40) | st.floats(-1e9, 1e9).map(lambda x: round(x, 3)) | st.booleans() | st.text("xy"),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner, min_size=1),
    max_leaves=3,
)  # fmt: skip


def write_json(path: Path, values: list[Any]) -> None:
    rows = [{"id": f"{path.stem}{n}", "text": f"text {path.stem}{n}", "n": value} for n, value in enumerate(values)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


SOME_JSON = st.lists(JSON, min_size=1, max_size=2)


@FEW
@given(old=SOME_JSON, new=SOME_JSON, by_row=st.booleans())
def test_values_of_json_come_out_equal_or_end_the_run_before_work(old, new, by_row, tiny_model, tmp_path_factory):
    two_nights_of_json(old, new, by_row, tiny_model, tmp_path_factory.mktemp("json"))


@pytest.mark.slow
@MANY
@given(old=SOME_JSON, new=SOME_JSON, by_row=st.booleans())
def test_so_do_many_more_of_them(old, new, by_row, tiny_model, tmp_path_factory):
    two_nights_of_json(old, new, by_row, tiny_model, tmp_path_factory.mktemp("json"))


def two_nights_of_json(old: list[Any], new: list[Any], by_row: bool, model: Path, folder: Path) -> None:
    (folder / "corpus").mkdir()
    write_json(folder / "corpus" / "a.jsonl", old)
    spec = spec_for(folder, model)
    try:
        inline.embed(spec)
    except InputError:  # the first night alone holds values of two kinds
        return
    write_json(folder / "corpus" / "b.jsonl", new)
    before = everything_in(folder / "table")
    try:
        version = run(spec, by_row)
    except InputError as refused:
        said = str(refused)
        assert all(word in said for word in ("b.jsonl", "source.schema")), said
        assert everything_in(folder / "table") == before
        return
    assert (version.counts.failed, version.counts.rows) == (0, len(old) + len(new))
    rows = read_table(folder / "table")
    parts = [pq.read_schema(part) for part in (folder / "table" / "data").rglob("*.parquet")]
    assert all(part.equals(parts[0]) for part in parts)
    assert [plain(value) for value in rows.column("n").to_pylist()] == [plain(value) for value in (*old, *new)]


@pytest.mark.parametrize("by_row", [False, True])
@pytest.mark.parametrize(
    ("old", "new", "final"),
    [
        ([1, 2], [1.5], pa.float64()),
        ([None], [7], pa.int64()),
        ([None], [[1]], pa.list_(pa.int64())),
        ([{"a": 1}], [{"a": 2, "b": "x"}], pa.struct({"a": pa.int64(), "b": pa.string()})),
        ([{"a": None, "b": 1}], [{"a": 2.5, "b": 1}], pa.struct({"a": pa.float64(), "b": pa.int64()})),
        ([[]], [[True]], pa.list_(pa.bool_())),
        ([1.5], [2], pa.float64()),
    ],
)
def test_json_widens(old, new, final, by_row, tiny_model, tmp_path):
    (tmp_path / "corpus").mkdir()
    write_json(tmp_path / "corpus" / "a.jsonl", old)
    spec = spec_for(tmp_path, tiny_model)
    inline.embed(spec)
    write_json(tmp_path / "corpus" / "b.jsonl", new)
    version = run(spec, by_row)
    assert version.counts.failed == 0
    rows = read_table(tmp_path / "table")
    assert [plain(value) for value in rows.column("n").to_pylist()] == [plain(value) for value in (*old, *new)]
    assert str(rows.schema.field("n").type).replace("element", "item") == str(final)


@pytest.mark.parametrize(("old", "new"), [([2**53 + 1], [1.5]), ([[2**60 + 1]], [[0.5]])])
def test_whole_numbers_that_no_float_holds_do_not_become_floats(old, new, tiny_model, tmp_path):
    (tmp_path / "corpus").mkdir()
    write_json(tmp_path / "corpus" / "a.jsonl", old)
    spec = spec_for(tmp_path, tiny_model)
    inline.embed(spec)
    write_json(tmp_path / "corpus" / "b.jsonl", new)
    with pytest.raises(InputError, match=r"column 'n'.*b\.jsonl'.*source\.schema"):
        inline.embed(spec)
    assert current(spec).version == 1


def late(path: Path, first: Any, count: int, then: Any, many: int) -> None:
    """A file whose column changes its kind behind all samples."""
    lines = [json.dumps({"id": f"{path.stem}{n}", "text": "x", "n": first}) for n in range(count)]
    lines += [json.dumps({"id": f"{path.stem}-late{n}", "text": "x", "n": then}) for n in range(many)]
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture
def short_samples(monkeypatch):
    monkeypatch.setattr(jsonl, "SAMPLE_BYTES", 2000)
    monkeypatch.setattr(jsonl, "MOST_SAMPLED_BYTES", 8000)


def test_large_files_are_looked_into_behind_their_sample(short_samples, monkeypatch, tiny_model, tmp_path):
    monkeypatch.setattr(jsonl, "_FURTHER_BYTES", 200)
    (tmp_path / "corpus").mkdir()
    late(tmp_path / "corpus" / "a.jsonl", 1, 1000, 1.5, 200)
    version = inline.embed(spec_for(tmp_path, tiny_model))
    assert (version.counts.rows, version.counts.failed) == (1200, 0)
    assert pa.types.is_float64(read_table(tmp_path / "table").schema.field("n").type)


@pytest.mark.parametrize("by_row", [False, True])
@pytest.mark.parametrize("then", [1.5, "text", {"b": 1}])
def test_a_kind_that_changes_behind_all_samples_is_told_and_is_no_dead_letters(
    then, by_row, short_samples, monkeypatch, tiny_model, tmp_path
):
    monkeypatch.setattr(jsonl, "_FURTHER_PLACES", 1)
    monkeypatch.setattr(jsonl, "_FURTHER_BYTES", 40)
    (tmp_path / "corpus").mkdir()
    spec = spec_for(tmp_path, tiny_model, limits={"max_failed_rows": 1_000_000})
    if by_row:
        write_json(tmp_path / "corpus" / "0.jsonl", [5])
        inline.embed(spec)
    late(tmp_path / "corpus" / "a.jsonl", 1, 1000, then, 150)
    before = current(spec).version
    with pytest.raises(RunError, match=r"a\.jsonl' at \d+: column 'n': .*read as int64.*source\.schema"):
        run(spec, by_row)
    assert current(spec).version == before
    if then == 1.5:
        mended = spec_for(tmp_path, tiny_model, source={"keep": ["n"], "schema": {"n": "double"}})
        version = run(mended, by_row)
        assert (version.counts.failed, version.counts.rows) == (0, 1150 + by_row)


def test_a_few_rows_of_another_kind_are_dead_letters_still(short_samples, tiny_model, tmp_path):
    (tmp_path / "corpus").mkdir()
    late(tmp_path / "corpus" / "a.jsonl", 1, 1000, "text", 9)
    version = inline.embed(spec_for(tmp_path, tiny_model, limits={"max_failed_rows": 0.1}))
    assert (version.counts.rows, version.counts.failed) == (1000, 9)


def test_a_kind_that_changes_late_in_the_sample_is_told_before_work(tiny_model, tmp_path):
    (tmp_path / "corpus").mkdir()
    late(tmp_path / "corpus" / "a.jsonl", 1, 1000, "text", 150)
    with pytest.raises(InputError, match=r"'n' holds both int64 and string, the second first in row 1001,"):
        inline.embed(spec_for(tmp_path, tiny_model))


def test_datasets_reads_a_widened_table(tiny_model, tmp_path):
    import datasets

    two_nights(pa.array([1], pa.int32()), pa.array([2**40], pa.int64()), False, tiny_model, tmp_path)
    datasets.disable_progress_bars()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        files = f"{tmp_path}/table/data/*.parquet"
        rows = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "cache"))
    assert sorted(rows["train"]["n"]) == [1, 2**40]
