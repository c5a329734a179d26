"""Rolling back, cleaning and purging, stopped before each of their changes to the store and done again."""

import gzip
import io
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import CommitConflict, InputError
from pipeline.storage import Folder
from pipeline.table import clock, dead_letters, layout, lease, materialise, rows, snapshot
from pipeline.table.operations import purge, restore, vacuum
from tests.inline import embed, read_table, spec_of
from tests.table.test_publish import (
    Crash,
    Crashing,
    changes_of,
    expected_rows,
    publish,
    rows_in_folder,
    stage,
)
from tests.table.test_publish import make_unit as make

HISTORY = [
    {"a": ["1x", "2y"], "b": ["3x"]},
    {"a": ["1x", "2y"], "c": ["3x", "4z"]},
    {"c": ["3x", "4z"], "d": ["5x"]},
]


def table_with_history(path) -> Folder:
    table = Folder(str(path), {})
    for desired in HISTORY:
        publish(table, desired, failed=1)
    return table


def content(table: Folder, version: int) -> pa.Table:
    """Its rows, wherever its files are now, with their partition and without their file's name."""
    state, places = snapshot.read(table, version), rows.places(table)
    found = [
        pq.read_table(f"{table.url}/{rows._place(part, places, table, state)}", partitioning=None).append_column(
            "day", pa.array([dict(part.partition)["day"]] * part.rows)
        )
        for part in state.parts
    ]
    return pa.concat_tables(found).sort_by("id")


def until_done(path, action) -> int:
    """Do it with a crash before the first change, then the second, ..; returns how many changes it takes."""
    for changes in range(1000):
        try:
            action(Crashing(str(path), {}).survive(changes))
            return changes
        except Crash:
            continue
    raise AssertionError


@pytest.mark.parametrize("number", [1, 2])
def test_a_rollback_gives_the_rows_of_its_version_wherever_it_is_stopped(number, tmp_path):
    table = table_with_history(tmp_path)
    wanted, before = content(table, number), content(table, 3)

    def roll_back_once(place):
        if max(snapshot.versions(place)) == 3:
            restore.roll_back(place, number)
        else:
            materialise.finish(place)

    assert until_done(tmp_path, roll_back_once) > 5 or max(snapshot.versions(table)) == 4
    materialise.finish(table)
    current = snapshot.current(table)
    assert (current.version, current.rows_of) == (4, number)
    assert content(table, 4).equals(wanted)
    assert rows_in_folder(table) == expected_rows(HISTORY[number - 1])
    live = {row["id"]: row["content_hash"] for row in before.to_pylist()}
    for row in changes_of(table, 4):
        live.pop(row["id"], None)
        if row["op"] == "upsert":
            live[row["id"]] = row["content_hash"]
    assert live == {row["id"]: row["content_hash"] for row in wanted.to_pylist()}
    counts = current.counts
    assert counts.new + counts.changed + counts.unchanged == wanted.num_rows
    assert snapshot.is_held(table, current)
    assert restore.release(table).version == 4
    assert not snapshot.is_held(table, snapshot.current(table))
    publish(table, HISTORY[2])
    assert rows_in_folder(table) == expected_rows(HISTORY[2])


def test_what_cannot_be_rolled_back_is_told_and_nothing_is_published(tmp_path):
    table = table_with_history(tmp_path)
    for number, words in [(3, "the current one"), (9, "no version 9"), (0, "no version 0")]:
        with pytest.raises(InputError, match=words):
            restore.roll_back(table, number)
    with pytest.raises(InputError, match="is not held"):
        restore.release(table)
    vacuum.clean(table, 0)
    with pytest.raises(InputError, match="cleaned away or purged"):
        restore.roll_back(table, 1)
    assert snapshot.versions(table) == [1, 2, 3]


def test_cleaning_keeps_two_versions_whole_and_takes_what_is_old(tmp_path):
    table = table_with_history(tmp_path)
    kept = [content(table, number) for number in (2, 3)]
    stage(table, make("forsaken", 77), ["9x"])
    table.write("data/day=x/part-000003-99999-dead.parquet", b"orphan")
    (tmp_path / "data" / ".tmp-unfinished").write_bytes(b"")
    assert vacuum.clean(table).files == ()  # nothing is a week old
    pending = {info.path for info in vacuum.clean(table, 0, dry_run=True).files}
    # What no version names leaves data/ at once, and goes for good when it is old.
    assert "meta/trash/000003/data/day=x/part-000003-99999-dead.parquet" in pending
    until_done(tmp_path, lambda place: vacuum.clean(place, 0))
    assert [content(table, number) for number in (2, 3)] == kept
    assert {info.path for info in table.list("data")} == {part.path for part in snapshot.current(table).parts}
    with pytest.raises(InputError, match="cleaned away"):
        content(table, 1)
    # A run may be at work: what it staged a moment ago stays, whatever the age that was asked for.
    assert table.list(layout.RECORDS)


def test_staged_work_that_nobody_went_on_with_is_cleaned(tmp_path, monkeypatch):
    table = table_with_history(tmp_path)
    stage(table, make("forsaken", 77), ["9x"])
    now = clock.now(table)
    monkeypatch.setattr(clock, "now", lambda _: now + 8 * vacuum.DAY_S)
    litter = vacuum.clean(table)
    assert len(litter.staging) == 2
    assert not table.list(layout.STAGING)


def test_a_version_published_meanwhile_stops_the_cleaning(tmp_path, monkeypatch):
    table = table_with_history(tmp_path)
    now = clock.now(table)

    def and_then_one_is_published(_):
        publish(table, HISTORY[0])
        return now + 8 * vacuum.DAY_S

    monkeypatch.setattr(clock, "now", and_then_one_is_published)
    with pytest.raises(CommitConflict, match="nothing was deleted"):
        vacuum.clean(table)
    assert len(content(table, 1)) == 3


def traces(table: Folder, name: str) -> set[str]:
    """Files that name the id anywhere."""
    found = set()
    for info in table.list(temporary=True):
        raw = table.read(info.path) or b""
        if raw[:4] == b"PAR1":
            raw = (
                repr(pq.read_table(io.BytesIO(raw)).to_pylist()).encode()
                + repr(pq.read_metadata(io.BytesIO(raw))).encode()
            )
        if name.encode() in raw:
            found.add(info.path)
    return found


def test_a_purged_row_is_nowhere_wherever_the_purge_is_stopped(tmp_path, monkeypatch):
    # Each process that was stopped here is dead, though it had the pid of this one.
    monkeypatch.setattr(lease, "is_dead", lambda _: True)
    table = table_with_history(tmp_path)
    stage(table, make("forsaken", 77), ["3x", "8x"])
    others = [row for row in content(table, 3).to_pylist() if row["id"] != "3x"]
    assert len(traces(table, "3x")) > 4

    def purge_again(place):
        try:
            purge.purge(place, ["3x"])
        except InputError:  # it was stopped as it gave its lease back, when all was done
            assert traces(table, "3x") == set()

    until_done(tmp_path, purge_again)
    materialise.finish(table)
    assert content(table, snapshot.current(table).version).to_pylist() == others
    assert rows_in_folder(table) == sorted((row["id"], row["id"][-1]) for row in others)
    left = traces(table, "3x")
    number = snapshot.current(table).version
    assert left <= {info.path for info in table.list(layout.changes(number))}
    if left:
        purge.purge(table, ["3x"])
    assert traces(table, "3x") == set()
    with pytest.raises(InputError, match="holds none of the 1 ids"):
        purge.purge(table, ["3x"])
    # Its unit counts it as left out: later versions pass the gate.
    before, purged = (snapshot.read(table, state).tallies() for state in (3, number))
    assert {unit: tally.source_rows for unit, tally in purged.items()} == {
        unit: tally.source_rows for unit, tally in before.items()
    }
    version = publish(table, {"c": [], "d": [], "e": ["6y"]})
    assert version.counts.rows == len(others) + 1
    assert (
        sum(tally.source_rows for tally in version.tallies().values())
        == sum(tally.source_rows for tally in snapshot.read(table, number).tallies().values()) + 1
    )


def test_a_run_leaves_what_was_purged_alone_until_its_file_changes(tiny_model, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    write_lines(source / "a.jsonl", ["a1", "a2"])
    write_lines(source / "b.jsonl.gz", ["b1", "b2"])  # a unit of its own: small files of one kind share one
    spec = spec_of(source, tiny_model, tmp_path / "table", limits={"unit_rows": 2})
    embed(spec)
    table = Folder(str(tmp_path / "table"), {})
    assert purge.purge(table, ["a1", "b1"]).rows == 2
    assert embed(spec).version == 2  # nothing to do
    write_lines(source / "b.jsonl.gz", ["b1", "b2", "b3"])
    assert embed(spec).version == 3
    assert read_table(table.url)["id"].to_pylist() == ["a2", "b1", "b2", "b3"]


def write_lines(path, ids):
    lines = "".join(json.dumps({"id": name, "text": f"text of {name}"}) + "\n" for name in ids).encode()
    path.write_bytes(gzip.compress(lines) if path.suffix == ".gz" else lines)


def test_a_purge_neither_ends_a_hold_nor_takes_one_up_again(tmp_path):
    table = table_with_history(tmp_path)
    restore.roll_back(table, 1)
    purge.purge(table, ["1x"])
    assert snapshot.is_held(table, snapshot.current(table))
    restore.release(table)
    purge.purge(table, ["2y"])
    assert not snapshot.is_held(table, snapshot.current(table))


def test_dead_letters_are_purged_too(tmp_path):
    table = Folder(str(tmp_path), {})
    publish(table, {"a": ["1x", "2x"]}, failed=2)
    path = table.list(layout.dead_letters(1))[0].path
    letters = pq.read_table(f"{tmp_path}/{path}")
    named = letters.set_column(0, letters.schema.field(0), pa.array(["bad-1", "bad-2"]))
    table.write(path, snapshot.to_parquet(named))
    done = purge.purge(table, ["bad-1"])
    assert (done.rows, done.dead_letters) == (0, 1)
    current = snapshot.current(table)
    assert (current.counts.failed, current.counts.skipped, current.counts.rows) == (1, 1, 2)
    assert traces(table, "bad-1") == set()
    assert traces(table, "bad-2")


def test_a_link_is_no_older_than_the_moment_it_was_made(tmp_path):
    table = Folder(str(tmp_path), {})
    table.write("a", b"x")
    os.utime(tmp_path / "a", (1, 1))
    table.copy("a", "b")
    (found,) = table.list("", temporary=False)[1:]
    assert found.modified > 1e9


def test_a_rollback_does_not_count_the_dead_letters_that_were_purged_since(tiny_model, tmp_path):
    source = tmp_path / "src" / "a.jsonl"
    source.parent.mkdir()
    rows_then = [{"id": "a", "text": "the market"}, {"id": "b", "text": None}, {"id": "c", "text": None}]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows_then))
    spec = spec_of(source, tiny_model, tmp_path / "table", limits={"max_failed_rows": 10})
    assert embed(spec).counts.failed == 2
    table = Folder(spec.table.path)
    assert purge.purge(table, ["b"]).dead_letters == 1
    current = restore.roll_back(table, 1)
    letters = pa.concat_tables(dead_letters.read(table, current))
    assert letters.column("id").to_pylist() == ["c"]
    assert (current.counts.failed, current.counts.skipped) == (1, 1)
    total = snapshot.total(current.sources)
    assert (total.failed, total.skipped, total.documents) == (1, 1, 1)
