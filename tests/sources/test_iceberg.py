"""Iceberg tables as sources: exactly the rows of a snapshot, whatever was written before and after it."""

import datetime
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg.manifest import DataFileContent, FileFormat
from pyiceberg.types import LongType, StringType

from pipeline.errors import InputError
from tests.lakes import (
    catalog_at,
    documents,
    errors_of,
    puffin,
    rows_of,
    spec_of,
    surveyed,
    texts_of,
    vector,
    with_deletes,
)


def table_of(folder: Path, rows: pa.Table, name: str = "t") -> tuple[Any, Path]:
    """An Iceberg table with these rows, and its folder."""
    table = catalog_at(folder).create_table(f"lake.{name}", schema=rows.schema)
    table.append(rows)
    return table, Path(table.location().removeprefix("file://"))


def live(table: Any, snapshot: int | None = None, columns: tuple[str, ...] = ("id", "text")) -> list[dict]:
    rows = table.scan(snapshot_id=snapshot, selected_fields=columns).to_arrow().select(columns).to_pylist()
    return sorted(({**row, "id": str(row["id"])} for row in rows), key=lambda row: row["id"])


def test_every_snapshot_gives_its_rows_and_nothing_else(tmp_path: Path) -> None:
    table, root = table_of(tmp_path, documents(1, 2, 3))
    table.append(documents(4, 5))
    table.delete("id = 3 or id = 4")
    table.upsert(documents(1, 9, text="upserted {}"), join_cols=["id"])
    table.manage_snapshots().create_tag(table.current_snapshot().snapshot_id, "tagged").commit()
    table.overwrite(documents(10, 11))
    spec = spec_of(f"iceberg:{root}")
    assert rows_of(spec) == live(table)
    assert sorted(texts_of(spec)) == ["10", "11"]
    assert texts_of(spec_of(f"iceberg:{root}", snapshot="tagged"))["1"] == "upserted 1"
    told = 0
    for snapshot in table.snapshots():
        expected = live(table, snapshot.snapshot_id)
        for named in (snapshot.snapshot_id, str(snapshot.snapshot_id)):
            if expected:
                assert rows_of(spec_of(f"iceberg:{root}", snapshot=named)) == expected
                told += 1
            else:
                with pytest.raises(InputError, match="holds no rows"):
                    surveyed(spec_of(f"iceberg:{root}", snapshot=named))
    assert told >= 10
    assert rows_of(spec_of(f"iceberg:{table.metadata_location}")) == live(table)
    assert surveyed(spec)[1].snapshot == f"Iceberg table {str(root)!r} snapshot {table.current_snapshot().snapshot_id}"


def test_columns_are_followed_by_their_numbers(tmp_path: Path) -> None:
    """A column that was renamed is the same, one that was dropped and comes again under its name is another."""
    titles = documents(1, 2, title=["one", "two"], size=pa.array([1, 2], pa.int32()))
    table, root = table_of(tmp_path, titles)
    before, _ = surveyed(spec_of(f"iceberg:{root}", keep=("title",)))
    with table.update_schema() as update:
        update.rename_column("text", "body")
        update.delete_column("title")
        update.update_column("size", LongType())
    with table.update_schema() as update:
        update.add_column("title", StringType())
        update.add_column("text", StringType())
    new = {"id": [3], "size": [2**40], "body": ["three"], "title": ["third"], "text": ["no text"]}
    table.append(pa.table(new))
    spec = spec_of(f"iceberg:{root}", text="body", keep=("title", "kept", "size"), renamed={"kept": "text"})
    found = rows_of(spec)
    assert [row["kept"] for row in found] == [None, None, "no text"]
    assert [(row["title"], row["size"]) for row in found] == [(None, 1), (None, 2), ("third", 2**40)]
    assert texts_of(spec_of(f"iceberg:{root}", text="body"))["1"] == "text of 1"
    assert rows_of(spec_of(f"iceberg:{root}", text="body", where="title == 'one'")) == []
    first = table.snapshots()[0].snapshot_id
    assert rows_of(spec_of(f"iceberg:{root}", snapshot=first, keep=("title",)))[0] == {
        "id": "1",
        "text": "text of 1",
        "title": "one",
    }
    # The same file with another column of that name is another source.
    after, _ = surveyed(spec_of(f"iceberg:{root}", text="body", keep=("title",)))
    same = next(file for file in after if file.path == before[0].path)
    assert same.version != before[0].version


def test_a_column_whose_inside_changed_is_refused(tmp_path: Path) -> None:
    more = pa.array([{"a": 1}], pa.struct([("a", pa.int64())]))
    table, root = table_of(tmp_path, documents(1, more=more))
    assert rows_of(spec_of(f"iceberg:{root}", keep=("more",)))[0]["more"] == {"a": 1}
    with table.update_schema() as update:
        update.rename_column(("more", "a"), "b")
    with pytest.raises(InputError, match=r"'more' .* is nested"):
        surveyed(spec_of(f"iceberg:{root}", keep=("more",)))
    assert texts_of(spec_of(f"iceberg:{root}")) == {"1": "text of 1"}


def test_files_that_others_wrote_get_their_columns_by_name_and_their_partitions_from_the_log(tmp_path: Path) -> None:
    rows = documents(1, 2)
    day = datetime.date(2020, 5, 17)
    schema = rows.append_column("day", pa.array([day] * 2)).append_column("lang", pa.array(["de"] * 2)).schema
    table = catalog_at(tmp_path).create_table("lake.t", schema=schema)
    with table.update_spec() as update:
        update.add_identity("day")
    path = tmp_path / "a.parquet"
    pq.write_table(rows.append_column("day", pa.array([day] * 2)), path)
    table.add_files([f"file://{path}"])
    # As after a move from Hive, the file lacks what its partition says. The log knows its size.
    write_of_size(rows, path, path.stat().st_size)
    root = table.location().removeprefix("file://")
    assert surveyed(spec_of(f"iceberg:{root}", keep=("day",)))[1].schema.field("day").type == pa.date32()
    found = rows_of(spec_of(f"iceberg:{root}", keep=("day", "lang"), where='day == date("2020-05-17")'))
    assert found == [{"id": str(n), "text": f"text of {n}", "day": day, "lang": None} for n in (1, 2)]


def test_older_files_have_the_default_of_a_column_that_came_later(tmp_path: Path) -> None:
    table, root = table_of(tmp_path, documents(1))
    with table.update_schema() as update:
        update.add_column("lang", StringType())
    table.append(documents(2, lang=["fr"]))
    newest = Path(table.metadata_location.removeprefix("file://"))
    raw = json.loads(newest.read_text())
    (field,) = (each for each in raw["schemas"][-1]["fields"] if each["name"] == "lang")
    field["initial-default"] = "de"
    newest.with_name("99999-x.metadata.json").write_text(json.dumps(raw))
    assert [row["lang"] for row in rows_of(spec_of(f"iceberg:{root}", keep=("lang",)))] == ["de", "fr"]
    assert texts_of(spec_of(f"iceberg:{root}", where="lang == 'de'")) == {"1": "text of 1"}


def write_of_size(rows: pa.Table, path: Path, size: int) -> None:
    """Write the rows as a Parquet file of that size, by a text among its metadata."""
    for length in range(size):
        with pq.ParquetWriter(path, rows.schema, store_schema=False) as writer:
            writer.write_table(rows)
            writer.add_key_value_metadata({"": "x" * length})
        if path.stat().st_size == size:
            return
    raise AssertionError(size)


def data_file(table: Any) -> str:
    (task,) = table.scan().plan_files()
    return str(task.file.file_path)


def test_rows_of_position_deletes_are_not_read(tmp_path: Path) -> None:
    table, root = table_of(tmp_path, documents(1, 2, 3, 4))
    path = data_file(table)
    rows = pa.table({"file_path": [path, path, "file:///other"], "pos": pa.array([0, 3, 1], pa.int64())})
    deletes = root / "data" / "deletes.parquet"
    pq.write_table(rows, deletes)
    described = {
        "content": DataFileContent.POSITION_DELETES,
        "file_path": f"file://{deletes}",
        "file_format": FileFormat.PARQUET,
        "file_size_in_bytes": deletes.stat().st_size,
    }
    before, _ = surveyed(spec_of(f"iceberg:{root}"))
    metadata = with_deletes(table, described)
    for place in (root, metadata):
        assert sorted(texts_of(spec_of(f"iceberg:{place}"))) == ["2", "3"]
    after, _ = surveyed(spec_of(f"iceberg:{root}"))
    assert (after[0].path, after[0].version != before[0].version) == (before[0].path, True)
    deletes.write_bytes(b"x" * deletes.stat().st_size)
    errors = errors_of(spec_of(f"iceberg:{root}"))
    assert len(errors) == 4
    assert all("which of its rows are deleted" in error for error in errors)


def test_rows_of_deletion_vectors_are_not_read(tmp_path: Path) -> None:
    table, root = table_of(tmp_path, documents(1, 2, 3, 4))
    content = puffin({"file:///other": vector(1), data_file(table): vector(0, 2)})
    (root / "data" / "dv.puffin").write_bytes(content)
    described = {
        "content": DataFileContent.POSITION_DELETES,
        "file_path": f"file://{root}/data/dv.puffin",
        "file_format": FileFormat.PUFFIN,
        "file_size_in_bytes": len(content),
    }
    metadata = with_deletes(table, described)
    assert sorted(texts_of(spec_of(f"iceberg:{metadata}"))) == ["2", "4"]


def test_equality_deletes_are_refused_by_name(tmp_path: Path) -> None:
    table, root = table_of(tmp_path, documents(1))
    deletes = {
        "content": DataFileContent.EQUALITY_DELETES,
        "file_path": f"file://{root}/data/eq.parquet",
        "file_format": FileFormat.PARQUET,
        "file_size_in_bytes": 10,
        "equality_ids": [1],
    }
    with_deletes(table, deletes)
    with pytest.raises(InputError, match=r"deletes rows by equality .*rewrite_data_files"):
        surveyed(spec_of(f"iceberg:{root}"))


def test_the_newest_metadata_are_taken(tmp_path: Path) -> None:
    table, root = table_of(tmp_path, documents(1))
    first = table.metadata_location.removeprefix("file://")
    table.append(documents(2))
    assert sorted(texts_of(spec_of(f"iceberg:{root}"))) == ["1", "2"]
    hint = root / "metadata" / "version-hint.text"
    hint.write_text(Path(first).name.removesuffix(".metadata.json"))
    assert sorted(texts_of(spec_of(f"iceberg:{root}"))) == ["1"]
    hint.unlink()
    newest = Path(table.metadata_location.removeprefix("file://"))
    shutil.copy(newest, newest.with_name("00002-" + "0" * 8 + newest.name[14:]))
    with pytest.raises(InputError, match=r"several newest metadata files.*iceberg:<metadata file>"):
        surveyed(spec_of(f"iceberg:{root}"))
    # A catalog of folders numbers them by itself, and its hint may be late.
    for path in (root / "metadata").glob("0*.metadata.json"):
        path.unlink() if path != newest else path.rename(path.with_name("v2.metadata.json"))
    hint.write_text("1")
    assert sorted(texts_of(spec_of(f"iceberg:{root}"))) == ["1", "2"]


def test_what_is_no_such_table_is_told(tmp_path: Path) -> None:
    table, root = table_of(tmp_path, documents(1))
    for path, options, message in [
        (tmp_path, {}, "leads to no Iceberg table"),
        (root, {"snapshot": "nowhere"}, "no such snapshot, branch or tag: the newest snapshots are .* 'main'"),
        (root, {"snapshot": 5}, "no such snapshot"),
        (f"{root}/metadata/no.metadata.json", {}, "is not there"),
    ]:
        with pytest.raises(InputError, match=message):
            surveyed(spec_of(f"iceberg:{path}", **options))
    bad = root / "metadata" / "99999-x.metadata.json"
    bad.write_text('{"format-version": 9}')
    with pytest.raises(InputError, match=r"Iceberg table .* can't be read"):
        surveyed(spec_of(f"iceberg:{root}"))
    bad.unlink()
    Path(data_file(table).removeprefix("file://")).unlink()
    with pytest.raises(InputError, match=r"names the file .*vacuumed or moved"):
        surveyed(spec_of(f"iceberg:{root}"))
