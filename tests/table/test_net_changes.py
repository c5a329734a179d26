"""Net changes bring who holds one version to another, whatever happened between the two, and say so where they can't."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pipeline
from jobs import changes as command
from pipeline import schema
from pipeline.errors import InputError
from pipeline.storage import Folder
from pipeline.table import materialise, snapshot
from pipeline.table.net_changes import ListsMissing, count_changes, net_changes
from pipeline.table.operations import purge
from tests.inline import embed, spec_of
from tests.table.histories import build
from tests.table.histories import held as now_held
from tests.table.test_changes import STEPS, UNITS, take

Keys = dict[str, tuple[bytes, int]]


def keys_of(table: Folder) -> Keys:
    return {name: (content, row) for name, (content, row, _) in now_held(table).items()}


def applied(before: Keys, batches) -> Keys:
    after, seen = dict(before), set()
    for rows in batches:
        for row in rows.to_pylist():
            assert row["id"] not in seen
            seen.add(row["id"])
            after.pop(row["id"], None)
            if row["op"] == "upsert":
                after[row["id"]] = (row["content_hash"], row["row_hash"])
    return after


@given(st.lists(STEPS, max_size=6), st.sampled_from([1, 3, 2_000_000]))
@settings(max_examples=20, deadline=None)
def test_who_holds_a_version_gets_to_the_current_one(tmp_path_factory, steps, most):
    table = Folder(str(tmp_path_factory.mktemp("table")))
    build(table, {"a": UNITS["a"]}, "A")
    states, purges = {1: keys_of(table)}, []
    for step in steps:
        take(table, step)
        number = materialise.finish(table).version
        states[number] = keys_of(table)
        purges += [number] if step[0] == "purge" else []
    until = snapshot.current(table)
    for since in sorted(states):
        try:
            found = applied(states[since], net_changes(table, since, until, most))
        except ListsMissing:
            # What a purge erases is missing in lists of versions before its own.
            assert any(since < number for number in purges)
            continue
        assert found == states[until.version], (since, steps)
    assert applied({}, net_changes(table, 0, until)) == states[until.version]


def test_a_list_that_is_gone_is_missed(tmp_path):
    table = Folder(str(tmp_path))
    build(table, {"a": UNITS["a"]})
    build(table, UNITS)
    build(table, {"c": UNITS["c"]})
    until = snapshot.current(table)
    assert count_changes(table, 1, 3) == 5 + 4
    (path,) = (tmp_path / "meta/changes/000002").iterdir()
    path.unlink()
    assert applied({}, net_changes(table, 2, until)).keys() == set()
    for since in (1,):
        with pytest.raises(ListsMissing, match=r"changes of version 2 .*0 of 5 are there"):
            list(net_changes(table, since, until))
    for since, message in ((9, "no way from version 9"), (-1, "no way from version -1")):
        with pytest.raises(InputError, match=message):
            list(net_changes(table, since, until))


def test_a_purge_after_it_leaves_a_version_incomplete(tmp_path):
    table = Folder(str(tmp_path))
    build(table, {"a": UNITS["a"]})
    build(table, UNITS)
    purge.purge(table, ["3x"])
    until = snapshot.current(table)
    with pytest.raises(ListsMissing, match="purged"):
        list(net_changes(table, 1, until))
    assert [row["op"] for rows in net_changes(table, 2, until) for row in rows.to_pylist()] == ["delete"]


@pytest.fixture(scope="module")
def nights(tmp_path_factory, tiny_model):
    """A table of three versions, with a kept column and folders by another."""
    root = tmp_path_factory.mktemp("nights")
    spec = spec_of(
        root / "docs.parquet",
        tiny_model,
        root / "table",
        source={"keep": ["title"]},
        table={"partition_by": ["lang"], "dtype": "int8"},
    )

    def night(rows):
        columns = ["id", "text", "title", "lang"]
        pq.write_table(
            pa.table(dict(zip(columns, map(list, zip(*rows, strict=True)), strict=True))), root / "docs.parquet"
        )
        embed(spec)

    night([(str(n), f"text {n}", f"t{n}", "en" if n % 2 else "de") for n in range(20)])
    night([(str(n), f"text {n}", f"t{n}", "en" if n % 2 else "de") for n in range(3, 25)])
    night([(str(n), f"text {n}" if n > 5 else "new", f"t{n}", "en" if n % 2 else "de") for n in range(3, 25)])
    return root / "table"


def test_rows_come_with_their_vectors_as_floats(nights, tmp_path):
    assert (pipeline.newest_version(nights), pipeline.newest_version(tmp_path / "none")) == (3, 0)
    for since, deleted in ((0, set()), (1, {"0", "1", "2"}), (2, set())):
        rows = pa.concat_tables(pipeline.changes(nights, since, rows=True))
        upserts = rows.filter(pa.compute.equal(rows.column("op"), "upsert")).sort_by("id")
        expected = {0: set(range(3, 25)), 1: {3, 4, 5, *range(20, 25)}, 2: {3, 4, 5}}[since]
        assert set(upserts.column("id").to_pylist()) == set(map(str, expected))
        assert set(rows.column("id").to_pylist()) - set(upserts.column("id").to_pylist()) == deleted
        table = pipeline.read(nights).to_table()
        wanted = table.filter(pa.compute.is_in(table.column("id"), upserts.column("id"))).sort_by("id")
        assert (pipeline.vectors(upserts, "embedding") == pipeline.vectors(wanted)).all()
        others = [name for name in table.column_names if name != "embedding"]
        assert upserts.select(others).to_pylist() == wanted.select(others).to_pylist()
        gone = rows.filter(pa.compute.equal(rows.column("op"), "delete"))
        assert all(row["embedding"] is None and row["title"] is None for row in gone.to_pylist())


def test_the_command_gives_lines_or_a_file(nights, tmp_path, capsys):
    assert command.main([str(nights), "--since", "1"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3 + 3 + 5
    output = tmp_path / "changes.parquet"
    assert command.main([str(nights), "--since", "1", "--until", "2", "--rows", "--output", str(output), "--json"]) == 0
    assert '"changes": 8' in capsys.readouterr().out
    assert pq.read_table(output).num_rows == 8
    assert command.main([str(nights), "--since", "3", "--output", str(output)]) == 0
    assert pq.read_schema(output).names == schema.CHANGES.names


@pytest.mark.parametrize(
    ("since", "until", "message"), [("1", None, "since is '1'"), (1, "2", "until is '2'"), (7, None, "no way")]
)
def test_what_is_no_version_is_refused(nights, since, until, message):
    with pytest.raises(InputError, match=message):
        list(pipeline.changes(nights, since, until))
