"""Commit and materialise: every version holds exactly the rows of its units, wherever the publisher dies."""

import dataclasses
import uuid

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import identity, schema
from pipeline.errors import CommitConflict, GateFailed
from pipeline.storage import Folder
from pipeline.table import layout, materialise, record, snapshot
from pipeline.table.operations import replace_units
from pipeline.table.operations.replace_units import Work
from pipeline.table.part import Part, distinct_sources, encode_part, part_schema, split_by_partition
from pipeline.table.publication import Description, Publication
from pipeline.table.record import Effort, Record
from pipeline.table.workers import WorkersHere
from pipeline.work import SourceFile, Span, Unit

SCHEMA = part_schema(pa.schema([pa.field("title", pa.string())]), True, "embedding", 4, "float32")


def make_unit(name: str, number: int) -> Unit:
    file = SourceFile(path=f"/src/{name}", size=1, version="1", format="jsonl")
    span = Span(file=file, kind="file", start=0, stop=1, rows=None)
    return Unit(unit_id=identity.digest(name), spans=(span,), sources=(number,))


def stage(
    table: Folder,
    unit: Unit,
    ids: list[str],
    failed: int = 0,
    number: int | None = None,
    attempt: str = "x",
    where: str | None = None,
) -> Record:
    """A recorded unit with a row per id; the partition is the id's last character. The texts say `where` they are, else the
    unit."""
    number = unit.sources[0] if number is None else number
    texts = pa.array([f"text of {name} in {where or unit.unit_id}" for name in ids], pa.large_string())
    vectors = np.ones((len(ids), 4), np.float32)
    rows = pa.table(
        [
            pa.array(ids, pa.string()),
            pa.array([name.upper() for name in ids], pa.string()),
            texts,
            pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), type=SCHEMA.field("embedding").type),
            identity.content_hashes(texts, ""),
            identity.row_hashes(pa.table({"title": ids})),
            pa.array([number] * len(ids), pa.int32()),
            pa.array([3] * len(ids), pa.int32()),
            pa.array([False] * len(ids)),
        ],
        schema=SCHEMA,
    ).append_column("day", pa.array([name[-1] for name in ids], pa.string()))
    parts = []
    for index, (partition, group) in enumerate(split_by_partition(rows, ["day"])):
        path = layout.staged_part(unit.unit_id, 0, attempt, index)
        content = encode_part(group, "embedding")
        table.write(path, content)
        parts.append(
            Part(
                path=path,
                size=content.size,
                rows=len(group),
                raw_bytes=group.nbytes,
                partition=partition,
                units=(unit.unit_id,),
                sources=distinct_sources(group),
            )
        )
    staged_letters = None
    if failed:
        letters = [{"source": number, "path": "/src", "stage": "read", "error": f"bad {n}"} for n in range(failed)]
        content = snapshot.to_parquet(pa.Table.from_pylist(letters, schema.DEAD_LETTERS))
        staged_letters = (layout.staged_dead_letters(unit.unit_id, 0, attempt), content.size)
        table.write(staged_letters[0], content)
    made = Record(
        unit_id=unit.unit_id, first_row=0, num_rows=len(ids) + failed, documents=len(ids), failed=failed,
        skipped=0, broken=False, last=True, sources=(number,),
        parts=tuple(parts), dead_letters=staged_letters, bad_vectors=0, effort=Effort(), attempt=uuid.uuid4().hex,
    )  # fmt: skip
    record.create(table, made)
    return made


def publish(table: Folder, desired: dict[str, list[str]], failed: int = 0) -> snapshot.Snapshot:
    """One run: stage the units that the table lacks, commit, materialise."""
    parent = materialise.finish(table)
    live = parent.units()
    taken = {number for numbers in live.values() for number in numbers}
    free = iter(sorted(set(range(1000)) - taken))
    done, kept = [], set()
    for name, ids in desired.items():
        if identity.digest(name) in live:
            kept.add(identity.digest(name))
        else:
            unit = make_unit(name, next(free))
            done.append((unit, [stage(table, unit, ids, failed)]))
    version = commit(Publication(table, parent), Work(done=done, kept=frozenset(kept)))
    materialise.materialise(table, version)
    return version


def commit(publication: Publication, work: Work, description: Description | None = None) -> snapshot.Snapshot:
    """Publish the work with workers in this process."""
    workers = WorkersHere(publication.table, "embedding")
    return replace_units.publish(publication, work, description or describe(), workers)


def describe() -> Description:
    return Description(
        run="r", time="t", fingerprint="f", fingerprint_of={}, output="o", output_spec={}, embedding="embedding",
        embeddings=({"column": "embedding", "dim": 4},), part_schema=SCHEMA, source_schema=pa.schema([]),
        probes=((0.0,),), timings={},
    )  # fmt: skip


def rows_in_folder(table: Folder) -> list[tuple[str, str]]:
    found = pads.dataset(f"{table.url}/data", partitioning="hive").to_table() if table.list("data/") else None
    return sorted(zip(*[found.column(name).to_pylist() for name in ("id", "day")], strict=True)) if found else []


def expected_rows(desired: dict[str, list[str]]) -> list[tuple[str, str]]:
    return sorted((name, name[-1]) for ids in desired.values() for name in ids)


def changes_of(table: Folder, version: int) -> list[dict]:
    files = table.list(layout.changes(version))
    return [row for info in files for row in pq.read_table(f"{table.url}/{info.path}").to_pylist()]


def test_versions_follow_their_units_and_changes_replay_to_the_rows(tmp_path):
    table = Folder(str(tmp_path), {})
    first = publish(table, {"a": ["1x", "2y"], "b": ["3x"]}, failed=2)
    assert (first.version, first.counts.rows, first.counts.new, first.counts.failed) == (1, 3, 3, 4)
    second = publish(table, {"a": ["1x", "2y"], "c": ["3x", "4z"]})
    counts = second.counts
    # "3x" has another text in the new unit; "2y" and "1x" stay.
    assert (counts.rows, counts.new, counts.changed, counts.deleted, counts.reused) == (4, 1, 1, 0, 2)
    assert (counts.failed, counts.failed_new) == (2, 0)
    third = publish(table, {"c": ["3x", "4z"]})
    assert (third.counts.deleted, third.counts.rows, third.counts.failed) == (2, 2, 0)
    assert rows_in_folder(table) == expected_rows({"c": ["3x", "4z"]})
    live: dict[str, bytes] = {}
    for version in (1, 2, 3):
        for row in changes_of(table, version):
            live.pop(row["id"], None)
            if row["op"] == "upsert":
                live[row["id"]] = row["content_hash"]
    found = pads.dataset(f"{table.url}/data", partitioning="hive").to_table()
    assert live == dict(zip(found["id"].to_pylist(), found["content_hash"].to_pylist(), strict=True))


def test_small_parts_of_a_partition_become_one_and_name_all_their_units(tmp_path):
    table = Folder(str(tmp_path), {})
    version = publish(table, {"a": ["1x", "2x"], "b": ["3x", "4y"], "c": ["0x"]})
    assert sorted((dict(part.partition)["day"], part.rows, len(part.units)) for part in version.parts) == [
        ("x", 4, 3),
        ("y", 1, 1),
    ]
    (part,) = (part for part in version.parts if part.rows == 4)
    assert pq.read_table(f"{tmp_path}/{part.path}")["id"].to_pylist() == ["0x", "1x", "2x", "3x"]


def test_sources_lead_from_a_row_to_its_file(tmp_path):
    table = Folder(str(tmp_path), {})
    publish(table, {"a": ["1x"], "b": ["2x"]})
    publish(table, {"b": ["2x"], "c": ["3x", "4x"]})
    sources = pq.read_table(f"{tmp_path}/{layout.sources_list(2)}").to_pylist()
    paths = {row["source"]: row["path"] for row in sources}
    rows = pads.dataset(f"{tmp_path}/data", partitioning="hive").to_table(columns=["id", "source"]).to_pylist()
    assert {row["id"]: paths[row["source"]] for row in rows} == {"2x": "/src/b", "3x": "/src/c", "4x": "/src/c"}
    assert len(paths) == len(sources)


def test_spans_that_another_plan_numbered_get_their_own_number_at_the_commit(tmp_path):
    table = Folder(str(tmp_path), {})
    unit, other = make_unit("a", 0), make_unit("b", 1)
    done = [(unit, [stage(table, unit, ["1x"])]), (other, [stage(table, other, ["2x"], failed=1, number=0)])]
    version = commit(Publication(table, snapshot.empty()), Work(done=done, kept=frozenset()))
    materialise.materialise(table, version)
    rows = pads.dataset(f"{tmp_path}/data", partitioning="hive").to_table(columns=["id", "source"]).to_pylist()
    assert {row["id"]: row["source"] for row in rows} == {"1x": 0, "2x": 1}
    (letters,) = table.list(layout.dead_letters(1))
    assert pq.read_table(f"{tmp_path}/{letters.path}")["source"].to_pylist() == [1]


def test_duplicate_ids_are_refused_with_their_names_and_nothing_is_published(tmp_path):
    table = Folder(str(tmp_path), {})
    publish(table, {"a": ["1x", "2x"]})
    with pytest.raises(GateFailed, match="'2x'"):
        publish(table, {"a": ["1x", "2x"], "b": ["2x", "3x"]})
    assert snapshot.versions(table) == [1]
    assert rows_in_folder(table) == expected_rows({"a": ["1x", "2x"]})


def test_bad_vectors_are_refused(tmp_path):
    table = Folder(str(tmp_path), {})
    unit = make_unit("a", 0)
    bad = dataclasses.replace(stage(table, unit, ["1x"]), bad_vectors=1)
    with pytest.raises(GateFailed, match="1 vectors are not finite"):
        commit(Publication(table, snapshot.empty()), Work(done=[(unit, [bad])], kept=frozenset()))


def test_of_two_publishers_on_one_parent_one_wins_and_the_other_keeps_its_records(tmp_path):
    table = Folder(str(tmp_path), {})
    ours, theirs = make_unit("a", 0), make_unit("b", 0)
    ours_done = Work(done=[(ours, [stage(table, ours, ["1x"])])], kept=frozenset())
    theirs_done = Work(done=[(theirs, [stage(table, theirs, ["2x"])])], kept=frozenset())
    parent = snapshot.empty()
    winner = commit(Publication(table, parent), ours_done)
    with pytest.raises(CommitConflict, match="version 1"):
        commit(Publication(table, parent), theirs_done)
    materialise.materialise(table, winner)
    assert rows_in_folder(table) == [("1x", "x")]
    assert record.is_complete(record.read_all(table, [theirs.unit_id])[theirs.unit_id])


def test_an_overtaken_publisher_leaves_nothing_of_its_version_behind(tmp_path):
    table = Folder(str(tmp_path), {})
    first = publish(table, {"a": ["1x", "2y"]})
    publish(table, {"b": ["3x"]})
    materialise.materialise(table, first)
    assert rows_in_folder(table) == [("3x", "x")]


class Crash(Exception):
    pass


class Crashing(Folder):
    """Dies before its n-th change to the store."""

    left: int

    def survive(self, changes: int) -> "Crashing":
        object.__setattr__(self, "left", changes)
        return self

    def _spend(self) -> None:
        if self.left == 0:
            raise Crash
        object.__setattr__(self, "left", self.left - 1)

    def write(self, path, data):
        self._spend()
        super().write(path, data)

    def create_once(self, path, data):
        self._spend()
        return super().create_once(path, data)

    def copy(self, source, target):
        self._spend()
        super().copy(source, target)

    def delete(self, paths):
        for path in paths:
            self._spend()
            super().delete([path])


@pytest.mark.parametrize(
    "step", [pytest.param(3, id="every third"), pytest.param(1, id="each", marks=pytest.mark.slow)]
)
def test_a_publisher_that_dies_before_any_one_of_its_changes_is_finished_by_the_next_run(step, tmp_path):
    desired = [{"a": ["1x", "2y"], "b": ["3x", "4y"]}, {"b": ["3x", "4y"], "c": ["1x", "5z"]}]
    deaths = 0
    while True:
        folder = tmp_path / str(deaths)
        table = Folder(str(folder), {})
        publish(table, desired[0])
        try:
            publish(Crashing(str(folder), {}).survive(deaths), desired[1])
            finished = True
        except Crash:
            finished = False
        live = desired[1] if snapshot.versions(table)[-1] == 2 else desired[0]
        materialise.finish(table)
        assert rows_in_folder(table) == expected_rows(live), f"after {deaths} changes"
        assert live is desired[0] or table.list(layout.STAGING) == [], f"after {deaths} changes"
        publish(table, desired[1])
        assert rows_in_folder(table) == expected_rows(desired[1]), f"after {deaths} changes"
        assert not [info.path for info in table.list(layout.RECORDS)]
        if finished:
            break
        deaths += step
    assert deaths > 20


NAMES = st.lists(st.sampled_from([f"{n}{day}" for n in range(12) for day in "xyz"]), max_size=6, unique=True)


@given(st.lists(st.dictionaries(st.sampled_from("abcde"), NAMES, max_size=4), min_size=1, max_size=4))
@settings(max_examples=25, deadline=None)
def test_any_sequence_of_versions_holds_the_rows_of_its_units(tmp_path_factory, generations):
    table = Folder(str(tmp_path_factory.mktemp("table")), {})
    for number, generation in enumerate(generations):
        # A unit's content never changes: its id says so.
        desired = {f"{name}-{'-'.join(sorted(ids))}": ids for name, ids in generation.items()}
        everything = [name for ids in desired.values() for name in ids]
        if len(everything) > len(set(everything)):
            with pytest.raises(GateFailed):
                publish(table, desired)
            return
        version = publish(table, desired)
        assert rows_in_folder(table) == expected_rows(desired)
        assert version.counts.rows == len(everything)
        assert version.version == number + 1
