"""Delta tables as sources: exactly the rows of a version, whatever was written before and after it."""

import base64
import datetime
import os
import shutil
import uuid
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from pipeline.config import LimitSpec
from pipeline.errors import InputError, SourceChanged
from pipeline.sources.reader import SliceSpec, read_slices
from pipeline.work import Unit
from tests.lakes import (
    add,
    documents,
    errors_of,
    rows_of,
    slices,
    spec_of,
    surveyed,
    table_actions,
    texts_of,
    vector,
    write_log,
)

FIELDS = [{"name": "id", "type": "long"}, {"name": "text", "type": "string"}]


def live(root: Path, version: int | None = None, columns: tuple[str, ...] = ("id", "text")) -> list[dict]:
    rows = pa.table(DeltaTable(root, version=version).to_pyarrow_table().select(columns)).to_pylist()
    return sorted(({**row, "id": str(row["id"])} for row in rows), key=lambda row: row["id"])


def test_every_version_gives_its_rows_and_nothing_else(tmp_path: Path) -> None:
    root = tmp_path / "t"
    write_deltalake(root, documents(1, 2, 3))
    write_deltalake(root, documents(4, 5), mode="append")
    DeltaTable(root).update(updates={"text": "'new'"}, predicate="id = 2")
    DeltaTable(root).delete("id = 3 or id = 4")
    more = documents(6, 7).append_column("price", pa.array([1.5, None]))
    write_deltalake(root, more, mode="append", schema_mode="merge")
    source = documents(1, 9, text="merged {}").append_column("price", pa.array([2.5, 3.5]))
    merge = DeltaTable(root).merge(source, "s.id = t.id", source_alias="s", target_alias="t")
    merge.when_matched_update_all().when_not_matched_insert_all().execute()
    DeltaTable(root).optimize.compact()
    write_deltalake(root, documents(10, 11), mode="overwrite", schema_mode="overwrite")
    assert texts_of(spec_of(f"delta:{root}")) == {"10": "text of 10", "11": "text of 11"}
    for version in range(8):
        found = rows_of(spec_of(f"delta:{root}", snapshot=version))
        assert found == live(root, version)
    assert rows_of(spec_of(f"delta:{root}", snapshot=6, keep=("price",))) == live(root, 6, ("id", "text", "price"))


def test_values_of_partitions_come_from_the_log_with_their_types(tmp_path: Path) -> None:
    root, noon = tmp_path / "a table", datetime.datetime(2020, 1, 1, 12, 0, 0, 5, datetime.UTC)
    langs, years = ["e n", "50%", None, "a=b/c"], pa.array([1, 1, 2, None], pa.int16())
    times = pa.array([noon] * 4, pa.timestamp("us", "UTC"))
    rows = documents(1, 2, 3, 4, lang=langs, year=years, at=times, code=["01", "1", "1", "x"])
    write_deltalake(root, rows, partition_by=["lang", "year", "at", "code"])
    keep = ("lang", "year", "at", "code")
    spec = spec_of(f"delta:{root.as_uri()}", keep=keep)
    assert rows_of(spec) == live(root, None, ("id", "text", *keep))
    assert surveyed(spec)[1].schema.field("year").type == pa.int16()
    assert surveyed(spec)[1].schema.field("code").type == pa.string()
    assert [row["id"] for row in rows_of(spec_of(f"delta:{root}", where="year == 1"))] == ["1", "2"]
    assert [row["id"] for row in rows_of(spec_of(f"delta:{root}", where="code == '01'"))] == ["1"]
    with pytest.raises(InputError, match=r"'code' is int64.*no such value"):
        surveyed(spec_of(f"delta:{root}", keep=("code",), schema={"code": "int64"}))


def test_instants_as_spark_writes_them_are_instants(tmp_path: Path) -> None:
    root, noon = tmp_path / "t", datetime.datetime(2020, 1, 1, 12, tzinfo=datetime.UTC)
    root.mkdir()
    rows = documents(1, at=pa.array([noon], pa.timestamp("us", "UTC")))
    action = add(root, "a.parquet", rows)
    pq.write_table(rows, root / "a.parquet", use_deprecated_int96_timestamps=True, store_schema=False)
    action["add"]["size"] = (root / "a.parquet").stat().st_size
    write_log(root, 0, *table_actions([*FIELDS, {"name": "at", "type": "timestamp"}]), action)
    assert rows_of(spec_of(f"delta:{root}", keep=("at",)))[0]["at"] == noon
    where = 'at == timestamp("2020-01-01T12:00:00Z")'
    assert texts_of(spec_of(f"delta:{root}", where=where)) == {"1": "text of 1"}


def test_a_version_is_read_from_its_checkpoint_on(tmp_path: Path) -> None:
    root = tmp_path / "t"
    for number in range(6):
        write_deltalake(root, documents(number), mode="append")
    DeltaTable(root).create_checkpoint()
    DeltaTable(root).delete("id = 2")
    for number in range(4):
        os.unlink(root / "_delta_log" / f"{number:020d}.json")
    assert sorted(texts_of(spec_of(f"delta:{root}"))) == ["0", "1", "3", "4", "5"]
    assert sorted(texts_of(spec_of(f"delta:{root}", snapshot=5))) == list("012345")
    for version in (3, 9):
        with pytest.raises(InputError, match=f"source.snapshot is {version}.* from version 5 to 6"):
            surveyed(spec_of(f"delta:{root}", snapshot=version))


def test_columns_go_by_the_names_or_numbers_that_the_log_maps_them_to(tmp_path: Path) -> None:
    def mapped(number: int, name: str, kind: object = "string") -> dict:
        metadata = {"delta.columnMapping.id": number, "delta.columnMapping.physicalName": f"col-{number}"}
        return {"name": name, "type": kind, "metadata": metadata}

    struct = {"type": "struct", "fields": []}
    fields = [
        mapped(1, "id", "long"),
        mapped(2, "text"),
        mapped(3, "lang"),
        mapped(4, "title"),
        mapped(5, "more", struct),
    ]
    columns = {"col-1": pa.array([1, 2]), "text": ["wrong"] * 2, "col-2": ["a", "b"], "title": ["dropped"] * 2}
    ids = {"col-1": 1, "text": 12, "col-2": 2, "title": 14}
    schema = pa.schema(
        [
            pa.field(name, pa.array(values).type, metadata={"PARQUET:field_id": str(ids[name])})
            for name, values in columns.items()
        ]
    )
    for mode in ("name", "id"):
        root = tmp_path / mode
        root.mkdir()
        names = list(columns) if mode == "name" else ["other", "text", "older", "title"]
        rows = pa.table(list(columns.values()), schema=schema).rename_columns(names)
        rows = rows.cast(pa.schema([field.with_name(name) for field, name in zip(schema, names, strict=True)]))
        action = add(root, "a.parquet", rows, partitionValues={"col-3": "de"})
        settings = {"delta.columnMapping.mode": mode, "delta.columnMapping.maxColumnId": "5"}
        write_log(root, 0, *table_actions(fields, ["columnMapping"], ["lang"], **settings), action)
        expected = [
            {"id": "1", "text": "a", "lang": "de", "title": None},
            {"id": "2", "text": "b", "lang": "de", "title": None},
        ]
        assert rows_of(spec_of(f"delta:{root}", keep=("lang", "title"))) == expected
        assert rows_of(spec_of(f"delta:{root}", keep=("title",), where="title == 'dropped'")) == []
        with pytest.raises(InputError, match=r"'more' .* maps names"):
            surveyed(spec_of(f"delta:{root}", keep=("more",)))


def z85(data: bytes) -> str:
    """Base85 has the alphabet of Git in Python."""
    ours = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~"
    theirs = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
    return base64.b85encode(data).decode().translate(str.maketrans(ours, theirs))


@pytest.mark.parametrize("kind", ["u", "p", "i"])
def test_rows_of_deletion_vectors_are_not_read(tmp_path: Path, kind: str) -> None:
    root, name = tmp_path / "t", uuid.uuid4()
    (root / "ab").mkdir(parents=True)
    content = vector(0, 3)
    inner = content[4:-4] + bytes(-(len(content) - 8) % 4)
    place = {
        "u": f"ab{z85(name.bytes)}",
        "p": (root / "ab" / f"deletion_vector_{name}.bin").as_uri(),
        "i": z85(inner),
    }[kind]
    (root / "ab" / f"deletion_vector_{name}.bin").write_bytes(b"\x01other" + content)
    described = {"storageType": kind, "pathOrInlineDv": place, "sizeInBytes": len(content) - 8, "cardinality": 2}
    described |= {} if kind == "i" else {"offset": 6}
    actions = table_actions(FIELDS, ["deletionVectors"])
    before, other = add(root, "a.parquet", documents(1, 2, 3, 4)), add(root, "b.parquet", documents(5))
    write_log(root, 0, *actions, before, other)
    removed = {"path": "a.parquet", "deletionTimestamp": 2, "dataChange": True}
    write_log(root, 1, {"remove": removed}, {"add": before["add"] | {"deletionVector": described}})
    spec = spec_of(f"delta:{root}")
    assert sorted(texts_of(spec)) == ["2", "3", "5"]
    assert sorted(texts_of(spec_of(f"delta:{root}", limit=2))) == ["2", "3"]
    assert sorted(texts_of(spec_of(f"delta:{root}", where="id > 2"))) == ["3", "5"]
    files, found = surveyed(spec)
    assert found.rows_known == 3
    old, _ = surveyed(spec_of(f"delta:{root}", snapshot=0))
    assert [now.version == then.version for now, then in zip(files, old, strict=True)] == [False, True]
    DeltaTable(root).create_checkpoint()
    os.unlink(root / "_delta_log" / f"{0:020d}.json")
    os.unlink(root / "_delta_log" / f"{1:020d}.json")
    assert sorted(texts_of(spec)) == ["2", "3", "5"]


def test_rows_are_dead_letters_where_the_deletion_vector_is_broken(tmp_path: Path) -> None:
    root = tmp_path / "t"
    root.mkdir()
    described = {
        "storageType": "i",
        "pathOrInlineDv": z85(vector(0, 3)[4:-4][:16]),
        "sizeInBytes": 16,
        "cardinality": 2,
    }
    broken = add(root, "a.parquet", documents(1, 2, 3, 4), deletionVector=described)
    write_log(root, 0, *table_actions(FIELDS, ["deletionVectors"]), broken, add(root, "b.parquet", documents(5)))
    errors = errors_of(spec_of(f"delta:{root}"))
    assert len(errors) == 4
    assert all("which of its rows are deleted" in error for error in errors)


def test_a_feature_that_is_not_known_is_refused_by_name(tmp_path: Path) -> None:
    actions = table_actions(FIELDS, ["timeTravelledRows"])
    (tmp_path / "t").mkdir()
    write_log(tmp_path / "t", 0, *actions, add(tmp_path / "t", "a.parquet", documents(1)))
    with pytest.raises(InputError, match="timeTravelledRows"):
        surveyed(spec_of(f"delta:{tmp_path}/t"))


def test_files_that_were_vacuumed_are_told_before_work_and_on_the_way(tmp_path: Path) -> None:
    root = tmp_path / "t"
    write_deltalake(root, documents(1))
    write_deltalake(root, documents(2), mode="overwrite")
    spec = spec_of(f"delta:{root}", snapshot=0)
    pieces = slices(spec)
    assert len(pieces) == 1
    files, found = surveyed(spec)
    os.unlink(files[0].path)
    with pytest.raises(InputError, match=r"version 0 names the file .*vacuumed"):
        surveyed(spec)
    slicing = SliceSpec(source=spec, schema=found.schema, carried=(), limits=LimitSpec(), rows=100)
    with pytest.raises(SourceChanged, match=r"version 0 is gone since it was planned, as vacuum"):
        list(read_slices(Unit(unit_id="x", spans=found.spans[0], sources=(0,)), slicing))


def test_a_write_during_the_run_changes_nothing(tmp_path: Path) -> None:
    root = tmp_path / "t"
    write_deltalake(root, documents(1, 2))
    files, _ = surveyed(spec_of(f"delta:{root}"))
    DeltaTable(root).update(updates={"text": "'new'"})
    (again,), _ = surveyed(spec_of(f"delta:{root}", snapshot=0))
    assert (again.path, again.version) == (files[0].path, files[0].version)


def test_a_large_file_is_cut_by_its_row_groups(tmp_path: Path) -> None:
    root = tmp_path / "t"
    root.mkdir()
    action = add(root, "a.parquet", documents(*range(20_000)))
    pq.write_table(documents(*range(20_000)), root / "a.parquet", row_group_size=9_000)
    action["add"]["size"] = (root / "a.parquet").stat().st_size
    write_log(root, 0, *table_actions(FIELDS), action)
    _, found = surveyed(spec_of(f"delta:{root}"))
    assert [[(span.kind, span.start, span.stop, span.rows) for span in group] for group in found.spans] == [
        [("row_groups", 0, 1, 9_000)],
        [("row_groups", 1, 2, 9_000)],
        [("row_groups", 2, 3, 2_000)],
    ]
    assert found.rows_known == 20_000


def test_what_is_no_such_table_is_told(tmp_path: Path) -> None:
    write_deltalake(tmp_path / "t", documents(1))
    for path, options, message in [
        (f"delta:{tmp_path}", {}, "leads to no Delta table"),
        (f"delta:{tmp_path}/nothing", {}, "leads to no Delta table"),
        (f"delta:{tmp_path}/t", {"snapshot": "main"}, "expected the number of a version"),
        (f"delta:{tmp_path}/t", {"format": "jsonl"}, "source.format"),
        (f"delta:{tmp_path}/t", {"exclude": ("x",)}, r"source\.where"),
        (f"delta:{tmp_path}/t", {"keep": ("txt",)}, "version 0 has no column 'txt'; the nearest are 'text'"),
        ((f"delta:{tmp_path}/t", str(tmp_path)), {}, "one table alone"),
        ("delta:s3://key:secret/x@bucket/t", {}, r"\*\*\*.*password"),
        ("delta:ftp://bucket/t", {}, "only these are known"),
    ]:
        with pytest.raises(InputError, match=message) as error:
            surveyed(spec_of(path, **options))
        assert "secret/x" not in str(error.value)
    (tmp_path / "t" / "_delta_log" / f"{0:020d}.json").write_text("{nonsense")
    with pytest.raises(InputError, match=r"Delta table .* version 0 can't be read") as error:
        surveyed(spec_of(f"delta:{tmp_path}/t"))
    assert "delta-log-" not in str(error.value)
    shutil.rmtree(tmp_path / "t" / "_delta_log")
