"""Lakehouse tables, embedded and reindexed: the rows of the snapshot, and nothing is read but files that came."""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable, WriterProperties, write_deltalake

from pipeline.config import RunSpec
from pipeline.errors import InputError
from pipeline.runs import prepare, reindex
from pipeline.runs.plan_summary import summarise_plan
from pipeline.sources import spans
from pipeline.storage import disk
from tests.inline import InProcess, embed, read_table, spec_of
from tests.inline import reindex as reindexed
from tests.lakes import catalog_at, documents

FILES, ROWS = 100, 3


class Delta:
    prefix = "delta"

    def __init__(self, folder: Path) -> None:
        self.root = folder / "t"
        self.path = f"delta:{self.root}"

    def append(self, rows: pa.Table) -> None:
        """A file is written for each value of a column `part`, where the table began with one."""
        parts = [name for name in rows.column_names if name == "part"]
        write_deltalake(self.root, rows, mode="append", schema_mode="merge", partition_by=parts or None)

    def overwrite(self, rows: pa.Table) -> None:
        write_deltalake(self.root, rows, mode="overwrite", schema_mode="overwrite")

    def update(self, id: int, text: str) -> None:
        DeltaTable(self.root).update(updates={"text": f"'{text}'"}, predicate=f"id = {id}")

    def delete(self, id: int) -> None:
        DeltaTable(self.root).delete(f"id = {id}")

    def rows(self) -> pa.Table:
        return DeltaTable(self.root).to_pyarrow_table()

    def files(self) -> set[str]:
        return set(DeltaTable(self.root).file_uris())


class Iceberg:
    prefix = "iceberg"

    def __init__(self, folder: Path) -> None:
        self.catalog = catalog_at(folder)
        self.table: Any = None

    @property
    def path(self) -> str:
        return f"iceberg:{self.table.location().removeprefix('file://')}"

    def append(self, rows: pa.Table) -> None:
        self._fit(rows)
        self.table.append(rows)

    def overwrite(self, rows: pa.Table) -> None:
        self._fit(rows)
        self.table.overwrite(rows)

    def _fit(self, rows: pa.Table) -> None:
        if self.table is None:
            self.table = self.catalog.create_table("lake.t", schema=rows.schema)
            if "part" in rows.column_names:
                with self.table.update_spec() as update:
                    update.add_identity("part")
        with self.table.update_schema() as columns:
            columns.union_by_name(rows.schema)

    def update(self, id: int, text: str) -> None:
        rows = self.table.scan(row_filter=f"id = {id}").to_arrow()
        place = rows.column_names.index("text")
        self.table.overwrite(rows.set_column(place, "text", pa.array([text])), overwrite_filter=f"id = {id}")

    def delete(self, id: int) -> None:
        self.table.delete(f"id = {id}")

    def rows(self) -> pa.Table:
        return self.table.scan().to_arrow()

    def files(self) -> set[str]:
        return {task.file.file_path.removeprefix("file://") for task in self.table.scan().plan_files()}


Lake = Delta | Iceberg


@pytest.fixture(params=[Delta, Iceberg])
def lake(request: pytest.FixtureRequest, tmp_path: Path) -> Lake:
    return request.param(tmp_path / "lake")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Callable[[], set[str]]:
    """The Parquet files that were opened since one asked, but those of logs."""
    paths: list[str] = []
    real = disk.open_with_info

    def open_with_info(path: str) -> Any:
        paths.append(path)
        return real(path)

    def taken() -> set[str]:
        found = {path for path in paths if path.endswith(".parquet") and "_delta_log" not in path}
        paths.clear()
        return found

    monkeypatch.setattr(disk, "open_with_info", open_with_info)
    return taken


def holds(spec: RunSpec, lake: Lake) -> None:
    """The table has the rows of the lake, with their texts, and no others."""
    rows = read_table(spec.table.path)
    wanted = {str(row["id"]): row["text"] for row in lake.rows().to_pylist()}
    assert dict(zip(rows["id"].to_pylist(), rows["text"].to_pylist(), strict=True)) == wanted


def test_a_night_with_one_in_a_hundred_changed_reads_only_what_came(
    lake: Lake, opened: Callable[[], set[str]], tiny_model: Path, tmp_path: Path
) -> None:
    ids = range(FILES * ROWS)
    lake.append(documents(*ids, part=pa.array([id // ROWS for id in ids], pa.int32())))
    spec = spec_of(lake.path, tiny_model, tmp_path / "table")
    assert embed(spec).counts.rows == FILES * ROWS
    holds(spec, lake)
    before = lake.files()
    assert len(before) == FILES
    assert opened() == before
    assert reindexed(spec).version == 1
    assert opened() == set()

    lake.update(10, "new text")
    lake.delete(20)
    lake.append(documents(1000, 1001, part=pa.array([FILES, FILES], pa.int32())))
    came = lake.files() - before
    assert 3 <= len(came) <= 4
    opened()
    encoded: list[int] = []
    counts = reindexed(spec, encoded=encoded).counts
    assert opened() == came
    assert (counts.new, counts.changed, counts.deleted, sum(encoded)) == (2, 1, 1, 3)
    holds(spec, lake)


def test_appends_overwrites_and_new_columns_are_followed(lake: Lake, tiny_model: Path, tmp_path: Path) -> None:
    lake.append(documents(1, 2))
    spec = functools.partial(spec_of, lake.path, tiny_model, tmp_path / "table")
    embed(spec())
    lake.append(documents(3, lang=["de"]))
    reindexed(spec())
    holds(spec(), lake)
    with_lang = spec(source={"keep": ["lang"]})
    reindexed(with_lang)
    assert read_table(tmp_path / "table")["lang"].to_pylist() == [None, None, "de"]
    lake.overwrite(documents(2, 3, 4, lang=["fr", "fr", "fr"]))
    counts = reindexed(with_lang).counts
    assert (counts.new, counts.changed, counts.deleted, counts.encoded) == (1, 2, 1, 1)
    holds(with_lang, lake)
    assert read_table(tmp_path / "table")["lang"].to_pylist() == ["fr"] * 3


def test_a_large_file_stays_closed_while_it_is_the_same(
    opened: Callable[[], set[str]], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spans, "UNIT_ROWS", 50)
    lake = Delta(tmp_path)
    write_deltalake(lake.root, documents(*range(120)), writer_properties=WriterProperties(max_row_group_size=60))
    spec = spec_of(lake.path, tiny_model, tmp_path / "table")
    first = embed(spec)
    kinds = first.sources.column("kind").to_pylist()
    assert kinds == ["row_groups"] * 2
    (large,) = opened()
    lake.append(documents(500))
    reindexed(spec)
    assert large not in opened()
    holds(spec, lake)
    lake.delete(7)
    assert reindexed(spec).counts.deleted == 1
    assert large not in opened()
    holds(spec, lake)


def test_plans_name_the_snapshot(lake: Lake, tiny_model: Path, tmp_path: Path) -> None:
    lake.append(documents(1, 2))
    spec = spec_of(lake.path, tiny_model, tmp_path / "table")
    planned = summarise_plan(prepare.prepare(spec, writes=False), InProcess())
    assert planned.snapshot is not None
    assert planned.snapshot in str(planned)
    assert lake.path.partition(":")[2] in planned.snapshot
    assert planned.rows == 2
    forecast = reindex.plan(spec, InProcess())
    assert forecast.snapshot == planned.snapshot
    assert planned.snapshot in str(forecast)
    state = "version 0" if isinstance(lake, Delta) else str(lake.table.current_snapshot().snapshot_id)
    assert planned.snapshot.endswith(state)


def test_the_rows_of_a_named_version_are_embedded(tiny_model: Path, tmp_path: Path) -> None:
    lake = Delta(tmp_path)
    lake.append(documents(1, 2))
    lake.overwrite(documents(3))
    spec = spec_of(lake.path, tiny_model, tmp_path / "table", source={"snapshot": 0})
    embed(spec)
    assert read_table(tmp_path / "table")["id"].to_pylist() == ["1", "2"]
    for file in DeltaTable(lake.root, version=0).file_uris():
        os.unlink(file)
    assert reindexed(spec).version == 1  # the table has what these files held
    with pytest.raises(InputError, match="vacuumed"):
        embed(spec_of(lake.path, tiny_model, tmp_path / "other", source={"snapshot": 0}))


def test_a_table_inside_its_source_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    lake = Delta(tmp_path)
    lake.append(documents(1))
    with pytest.raises(InputError, match="lie in one another"):
        embed(spec_of(lake.path, tiny_model, lake.root / "embeddings"))
