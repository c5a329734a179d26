"""What is special to stores of files: what each format looks like to its own readers, revisions, and dead feeders."""

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import InputError, RunError
from pipeline.feeds import files_indexes
from pipeline.feeds.files import MANY_FILES, FilesStore
from pipeline.feeds.files_revisions import Revisions
from pipeline.feeds.store import Index, Marker, NotOurs, Shape
from tests.feeds.files_place import place_in, store_of
from tests.feeds.rows import floats_of, marker_of, rows_of, shape_of
from tests.feeds.stores import Place
from tests.feeds.test_contract import assert_same, held, load, only, sync
from tests.feeds.test_lance import many_rows, recall

G1, G2 = "docs__g1_a", "docs__g2_b"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return place_in(tmp_path / "files")


@pytest.fixture
def store(place: Place) -> FilesStore:
    return store_of(place)


def shown(place: Place) -> Path:
    """The folder that readers see now: they resolve the link once."""
    return Path(place.spec.url, "docs").resolve()


def loaded(place: Place, shape: Shape, rows: pa.Table) -> tuple[FilesStore, Marker]:
    store = store_of(place)
    marker = load(store, shape, {"u1": rows.slice(0, len(rows) // 2), "u2": rows.slice(len(rows) // 2)})
    store.switch(G1)
    return store, sync(store, shape, marker, 2, rows_of(shape, ["new"]), ["3"])


def vectors_in(shape: Shape, rows: pa.Table, names: list[str]) -> np.ndarray:
    ids = rows.column("id").to_pylist()
    return floats_of(shape, rows)[[ids.index(name) for name in names]]


def test_faiss_reads_its_index(tmp_path: Path) -> None:
    import faiss

    place, shape = place_in(tmp_path, "faiss"), shape_of(metric="dot")
    rows = rows_of(shape, range(40))
    loaded(place, shape, rows)
    index = faiss.read_index(str(shown(place) / "index.faiss"))
    names = pq.read_table(shown(place) / "ids.parquet").column("id").to_pylist()
    assert index.ntotal == len(names) == 40
    assert set(names) == {*map(str, range(40)), "new"} - {"3"}
    expected = vectors_in(shape, pa.concat_tables([rows, rows_of(shape, ["new"])]), names)
    assert np.array_equal(index.reconstruct_n(0, 40), expected)


def test_usearch_reads_its_index(tmp_path: Path) -> None:
    from usearch.index import Index as UsearchIndex

    place, shape = place_in(tmp_path, "usearch"), shape_of(dtype="float16")
    rows = rows_of(shape, range(40))
    loaded(place, shape, rows)
    index = UsearchIndex.restore(str(shown(place) / "index.usearch"))
    assert index is not None
    held_ids = pq.read_table(shown(place) / "ids.parquet")
    names, keys = held_ids.column("id").to_pylist(), held_ids.column("key").to_numpy()
    assert index.size == len(names) == 40
    expected = vectors_in(shape, pa.concat_tables([rows, rows_of(shape, ["new"])]), names)
    assert np.array_equal(index.get(keys, dtype="f16"), expected.astype(np.float16))


def test_usearch_changes_its_index_in_place_until_much_is_gone(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(files_indexes, "EXACT_ROWS", 100)
    place, shape = place_in(tmp_path, "usearch"), shape_of(pa.schema([]), dim=32)
    rows = many_rows(shape, 600)
    store = store_of(place)
    marker = load(store, shape, {"u": rows.slice(0, 500)})
    store.switch(G1)
    built: list[int] = []
    build = files_indexes.Usearch.build

    def count(self, folder, shape, ids, vectors) -> None:
        built.append(len(ids))
        build(self, folder, shape, ids, vectors)

    monkeypatch.setattr(files_indexes.Usearch, "build", count)
    marker = sync(store, shape, marker, 2, rows.slice(450, 150), [str(number) for number in range(30)])
    assert not built
    assert recall(store, shape, rows.slice(30)) >= 0.95
    marker = sync(store, shape, marker, 3, None, [str(number) for number in range(30, 330)])
    marker = sync(store, shape, marker, 4, rows.slice(0, 10), [])
    assert built == [280]
    assert recall(store, shape, pa.concat_tables([rows.slice(330), rows.slice(0, 10)])) >= 0.95


def test_duckdb_reads_its_table(tmp_path: Path) -> None:
    import duckdb

    place, shape = place_in(tmp_path, "duckdb"), shape_of()
    loaded(place, shape, rows_of(shape, range(40)))
    with duckdb.connect(str(shown(place) / "rows.duckdb"), read_only=True) as database:
        (kind,) = database.execute("SELECT typeof(embedding) FROM rows LIMIT 1").fetchone() or ("",)
        ids = {name for (name,) in database.execute("SELECT id FROM rows").fetchall()}
    assert kind == f"FLOAT[{shape.dim}]"
    assert ids == {*map(str, range(40)), "new"} - {"3"}


def test_pinecone_imports_its_folder(tmp_path: Path) -> None:
    place = place_in(tmp_path, "pinecone")
    place = dataclasses.replace(
        place, spec=dataclasses.replace(place.spec, options={"format": "pinecone", "namespace": "texts"})
    )
    shape = shape_of(pa.schema([pa.field("title", pa.string()), pa.field("tags", pa.list_(pa.string()))]))
    rows = rows_of(shape, range(40))
    loaded(place, shape, rows)
    found = pa.concat_tables(pq.read_table(file) for file in (shown(place) / "import" / "texts").glob("*.parquet"))
    assert found.schema.names == ["id", "values", "metadata"]
    assert found.schema.types == [pa.string(), pa.list_(pa.field("element", pa.float32())), pa.string()]
    assert found.num_rows == 40
    titles = dict(zip(rows.column("id").to_pylist(), rows.column("title").to_pylist(), strict=True))
    for name, text in zip(found.column("id").to_pylist(), found.column("metadata").to_pylist(), strict=True):
        metadata = json.loads(text)
        assert None not in metadata.values()  # Pinecone refuses nulls.
        assert name == "new" or metadata.get("title") == titles[name]


def test_milvus_imports_its_files(tmp_path: Path) -> None:
    place, shape = place_in(tmp_path, "milvus"), shape_of()
    loaded(place, shape, rows_of(shape, range(40)))
    found = pa.concat_tables(pq.read_table(file) for file in (shown(place) / "rows").glob("*.parquet"))
    assert found.num_rows == 40
    assert pa.types.is_list(found.schema.field("embedding").type)  # A list of a fixed size is refused.
    assert not any(pa.types.is_fixed_size_binary(kind) for kind in found.schema.types)


def test_vdf_describes_its_files(tmp_path: Path) -> None:
    place, shape = place_in(tmp_path, "vdf"), shape_of()
    loaded(place, shape, rows_of(shape, range(40)))
    meta = json.loads((shown(place) / "VDF_META.json").read_text())
    (entry,) = meta["indexes"]["docs"]
    files = list((shown(place) / entry["data_path"]).glob("*.parquet"))
    assert entry["exported_vector_count"] == sum(pq.read_table(file).num_rows for file in files) == 40
    assert (entry["dimensions"], entry["metric"], entry["vector_columns"]) == (shape.dim, "Cosine", ["embedding"])


@pytest.mark.parametrize(
    ("form", "dtype", "metric"),
    [
        ("faiss", "float32", "cosine"),
        ("faiss", "float32", "euclidean"),
        ("faiss", "binary", "hamming"),
        ("usearch", "float16", "dot"),
        ("usearch", "binary", "hamming"),
    ],
)
def test_many_rows_have_a_graph(tmp_path: Path, form: str, dtype: Any, metric: Any, monkeypatch) -> None:
    monkeypatch.setattr(files_indexes, "EXACT_ROWS", 1000)
    shape = shape_of(pa.schema([]), dim=64, dtype=dtype, metric=metric, index=Index(m=32, ef_construction=200))
    rows = many_rows(shape, 2000)
    store = store_of(place_in(tmp_path, form))
    load(store, shape, {"u": rows})
    assert recall(store, shape, rows) >= 0.95


def test_a_reader_that_resolves_the_link_sees_one_revision(store: FilesStore, place: Place) -> None:
    shape = shape_of()
    marker = load(store, shape, {"u": rows_of(shape, range(60))})
    store.switch(G1)
    seen: set[tuple[int, int]] = set()
    stopped = threading.Event()

    def read() -> None:
        while not stopped.is_set():
            folder = shown(place)
            rows = sum(pq.read_table(file).num_rows for file in (folder / "rows").glob("*.parquet"))
            seen.add((rows, pq.read_table(folder / "ids.parquet").num_rows))
            time.sleep(0.001)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for number in range(5):
            marker = sync(store, shape, marker, 2 + number, rows_of(shape, [f"n{number}"]), [])
    finally:
        stopped.set()
        reader.join()
    assert seen <= {(60 + number, 60 + number) for number in range(6)}
    assert only(store).applied == 6


def test_a_frozen_feeder_changes_nothing_any_more(store: FilesStore, place: Place) -> None:
    shape = shape_of()
    marker = load(store, shape, {"u": rows_of(shape, range(30))})
    store.switch(G1)
    with store.delta(shape, marker, marker_of(shape, G1, 2, indexed=True)) as frozen:
        frozen.upsert(rows_of(shape, range(10), seed=1))
        newer = sync(store_of(place), shape, marker, 3, rows_of(shape, ["x"]), ["0"])
        with pytest.raises(NotOurs):
            frozen.commit()
    assert only(store) == newer
    assert_same(store, shape, held(store, shape), rows_of(shape, [*range(1, 30), "x"]))


def test_a_feeder_that_froze_for_long_finds_its_number_free_and_is_refused(
    store: FilesStore, place: Place, monkeypatch
) -> None:
    monkeypatch.setattr("pipeline.feeds.files_revisions.KEPT_S", 0)
    shape = shape_of()
    marker = load(store, shape, {"u": rows_of(shape, range(30))})
    store.switch(G1)
    with store.delta(shape, marker, marker_of(shape, G1, 2, indexed=True)) as frozen:
        frozen.upsert(rows_of(shape, range(10), seed=1))
        newer = marker
        for version in range(3, 8):
            newer = sync(store_of(place), shape, newer, version, rows_of(shape, ["x"], seed=version), [])
        with pytest.raises(NotOurs):
            frozen.commit()
    assert only(store) == newer


def test_a_feeder_that_froze_before_the_link_shows_the_newest_revision(
    store: FilesStore, place: Place, monkeypatch
) -> None:
    """It swaps the link to its own revision as the first thing after it wakes."""
    shape = shape_of()
    marker = load(store, shape, {"u": rows_of(shape, range(30))})
    store.switch(G1)
    newest, woke = Revisions.newest, []

    def freeze(self: Revisions, generation: str) -> Path:
        found = newest(self, generation)
        if sys._getframe(1).f_code.co_name == "show" and not woke:
            woke.append(found)
            sync(store_of(place), shape, only(store_of(place)), 3, rows_of(shape, ["x"]), ["0"])
        return found

    monkeypatch.setattr(Revisions, "newest", freeze)
    sync(store, shape, marker, 2, rows_of(shape, ["y"]), [])
    assert json.loads((shown(place) / "feed.json").read_text())["applied"] == 3


def test_a_link_that_was_left_behind_is_found_and_moved(store: FilesStore, place: Place, monkeypatch) -> None:
    shape = shape_of()
    marker = load(store, shape, {"u": rows_of(shape, range(30))})
    store.switch(G1)
    with monkeypatch.context() as patch:
        patch.setattr(Revisions, "show", lambda *arguments: None)
        sync(store, shape, marker, 2, rows_of(shape, ["x"]), [])
    assert json.loads((shown(place) / "feed.json").read_text())["applied"] == 1
    assert only(store_of(place)).applied == 2
    assert json.loads((shown(place) / "feed.json").read_text())["applied"] == 2


CHILD = """
import os, signal, sys
import tests.feeds.test_files as ours
steps = int(sys.argv[2])
def dying(function):
    def call(*arguments, **options):
        global steps
        steps -= 1
        if steps == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*arguments, **options)
        steps -= 1
        if steps == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return call
for name in ("rename", "replace", "link", "symlink"):
    setattr(os, name, dying(getattr(os, name)))
ours.feed(ours.place_in(ours.Path(sys.argv[1])))
"""


def feed(place: Place) -> None:
    """A load, a switch and a delta, from wherever the last process left them."""
    shape, store = shape_of(), store_of(place)
    found = {generation.name: generation for generation in store.generations()}
    marker = found[G1].marker if G1 in found else None
    if marker is None or not marker.indexed:
        if marker is None or not marker.applied:
            load(store, shape, {"u1": rows_of(shape, range(30)), "u2": rows_of(shape, range(30, 50))})
        else:
            store.build_index(G1, shape, lambda share: None)
            store.mark(marker_of(shape, G1, 1, indexed=True), marker)
    store.switch(G1)
    marker = only(store)
    if marker.applied < 2:
        sync(store, shape, marker, 2, rows_of(shape, range(40, 60), seed=1), ["1", "2"])


QUICK = (8, 33)


@pytest.mark.parametrize(
    "step", [*QUICK, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, 46) if n not in QUICK)]
)
def test_a_feeder_killed_at_any_call_is_made_good(place: Place, step: int) -> None:
    ended = subprocess.run([sys.executable, "-W", "ignore", "-c", CHILD, place.spec.url, str(step)], check=False)
    assert ended.returncode in (-9, 0)
    feed(place)
    shape, store = shape_of(), store_of(place)
    expected = [rows_of(shape, [0, *range(3, 40)]), rows_of(shape, range(40, 60), seed=1)]
    assert_same(store, shape, held(store, shape), pa.concat_tables(expected))
    assert shown(place) == Path(place.spec.url).resolve() / store._revisions.newest(G1).relative_to(place.spec.url)


def test_files_without_a_change_are_taken_over(store: FilesStore, place: Place) -> None:
    shape = shape_of()
    marker = load(store, shape, {"u": rows_of(shape, range(30)), "v": rows_of(shape, range(30, 60))})
    store.switch(G1)
    before = {os.stat(file).st_ino for file in (shown(place) / "rows").iterdir()}
    sync(store, shape, marker, 2, rows_of(shape, ["3"], seed=1), [])
    after = {os.stat(file).st_ino for file in (shown(place) / "rows").iterdir()}
    assert (len(before), len(after), len(before & after)) == (2, 3, 1)


def test_many_syncs_leave_few_files_and_few_revisions(store: FilesStore, place: Place, monkeypatch) -> None:
    monkeypatch.setattr("pipeline.feeds.files_revisions.KEPT_S", 0)
    shape = shape_of()
    marker = load(store, shape, {"u": rows_of(shape, range(30))})
    store.switch(G1)
    for number in range(MANY_FILES + 4):
        marker = sync(store, shape, marker, 2 + number, rows_of(shape, [f"n{number}"]), [])
    assert len(list((shown(place) / "rows").iterdir())) <= MANY_FILES
    assert len([path for path in shown(place).parent.iterdir() if path.name.startswith("r")]) == 2
    expected = rows_of(shape, [*range(30), *(f"n{number}" for number in range(MANY_FILES + 4))])
    assert_same(store, shape, held(store, shape), expected)


def test_what_was_abandoned_is_removed(store: FilesStore, place: Place) -> None:
    shape = shape_of()
    marker = load(store, shape, {"u": rows_of(shape, range(3))})
    left = Path(place.spec.url, G1, "prepared-0")
    left.mkdir()
    marker = sync(store, shape, marker, 2, None, [])
    assert left.exists()
    os.utime(left, (0, 0))
    sync(store, shape, marker, 3, None, [])
    assert not left.exists()


def test_another_format_needs_another_name(store: FilesStore, place: Place) -> None:
    load(store, shape_of(), {"u": rows_of(shape_of(), range(3))})
    other = store_of(place_in(Path(place.spec.url), "usearch"))
    with pytest.raises(InputError, match=r"'usearch'.*'faiss'.*feeds\.name"):
        other.check(shape_of())


def test_a_name_that_is_taken_is_left_alone(store: FilesStore, place: Place) -> None:
    Path(place.spec.url).mkdir()
    Path(place.spec.url, "docs").write_text("mine")
    with pytest.raises(InputError, match="no link of a feed"):
        store.check(shape_of())
    assert Path(place.spec.url, "docs").read_text() == "mine"


def test_what_is_live_is_not_dropped(store: FilesStore) -> None:
    load(store, shape_of(), {"u": rows_of(shape_of(), range(3))})
    store.switch(G1)
    with pytest.raises(RunError, match="readers"):
        store.drop(G1)
    assert store.count(G1) == 3


@pytest.mark.parametrize(
    ("options", "shape", "words"),
    [
        ({}, {}, ["''", "faiss, usearch, duckdb"]),
        ({"format": "annoy"}, {}, ["'annoy'", "faiss"]),
        ({"format": "faiss", "nlist": 3}, {}, ["'nlist'", "format"]),
        ({"format": "pinecone", "namespace": "../x"}, {}, ["'../x'", "letters"]),
        ({"format": "pinecone"}, {"dtype": "float16"}, ["'float16'", "float32"]),
        ({"format": "faiss"}, {"metric": "hamming"}, ["hamming", "cosine"]),
        ({"format": "faiss"}, {"index": Index(kind="ivf")}, ["'ivf'", "hnsw"]),
        ({"format": "milvus"}, {"columns": pa.schema([pa.field("day", pa.date32())])}, ["'day'", "date32"]),
        ({"format": "pinecone"}, {"columns": pa.schema([pa.field("raw", pa.binary())])}, ["'raw'", "binary"]),
        ({"format": "duckdb"}, {"columns": pa.schema([pa.field("half", pa.float16())])}, ["'half'", "halffloat"]),
    ],
)
def test_what_cannot_be_is_refused_by_name(place: Place, options, shape, words) -> None:
    with pytest.raises(InputError) as error:
        FilesStore(dataclasses.replace(place.spec, options=options)).check(shape_of(**shape))
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_bucket_is_refused(place: Place) -> None:
    with pytest.raises(InputError, match=r"s3://bucket.*folder of a disk"):
        FilesStore(dataclasses.replace(place.spec, url="s3://bucket/x"))


def test_rows_that_pinecone_refuses_are_named(tmp_path: Path) -> None:
    shape = shape_of(pa.schema([pa.field("n", pa.int64()), pa.field("f", pa.float64()), pa.field("t", pa.string())]))
    rows = rows_of(shape, ["fit", "x" * 513, "", "big", "nan", "long"])
    rows = rows.set_column(1, "n", pa.array([1, 1, 1, 2**60, 1, 1], pa.int64()))
    rows = rows.set_column(2, "f", pa.array([1, 1, 1, 1, float("nan"), 1.0]))
    rows = rows.set_column(3, "t", pa.array(["a", "a", "a", "a", "a", "y" * 41_000]))
    for given in (rows, rows.drop_columns(["embedding"])):
        found = store_of(place_in(tmp_path, "pinecone")).unfit(given)
        assert sorted(found) == [1, 2, 3, 4, 5]
        assert [word in found[row] for row, word in enumerate(["513", "0", "2^53", "nan", "40960"], 1)] == [True] * 5


def test_rows_that_milvus_refuses_are_named(tmp_path: Path) -> None:
    shape = shape_of(pa.schema([pa.field("t", pa.string())]))
    rows = rows_of(shape, ["fit", "", "long"]).set_column(1, "t", pa.array(["a", None, "é" * 40_000]))
    found = store_of(place_in(tmp_path, "milvus")).unfit(rows)
    assert sorted(found) == [1, 2]
    assert "80000" in found[2]
