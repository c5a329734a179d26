"""Changes tell everything: who follows them from version 0 holds the current version, whatever happened to the table."""

import contextlib

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.storage import Folder
from pipeline.table import materialise, snapshot
from pipeline.table.operations import purge, restore, vacuum
from tests.table.histories import build, check_named, export_anew, held, replayed

UNITS = {"a": ["1x", "2y"], "b": ["3x"], "c": ["4z", "5x", "6y"], "d": ["7z"]}
STEPS = st.one_of(
    st.tuples(st.just("build"), st.sets(st.sampled_from(sorted(UNITS)), min_size=1), st.sampled_from("AB")),
    st.tuples(st.just("roll back"), st.integers(1, 9)),
    st.tuples(st.just("purge"), st.sampled_from([name for ids in UNITS.values() for name in ids])),
    st.just(("export",)),
    st.just(("clean",)),
)


def take(table: Folder, step) -> None:
    match step:
        case ("build", names, model):
            build(table, {name: UNITS[name] for name in sorted(names)}, model)
        case ("roll back", number):
            with contextlib.suppress(InputError):  # the current one, or cleaned away, or purged
                restore.roll_back(table, number)
                restore.release(table)
        case ("purge", name):
            with contextlib.suppress(InputError):  # not there
                purge.purge(table, [name])
        case ("export",):
            export_anew(table)
        case ("clean",):
            vacuum.clean(table, 0)


@given(st.lists(STEPS, max_size=7))
@settings(max_examples=20, deadline=None)
def test_who_replays_the_changes_holds_the_current_version(tmp_path_factory, steps):
    table = Folder(str(tmp_path_factory.mktemp("table")))
    build(table, {"a": UNITS["a"]}, "A")
    for step in steps:
        take(table, step)
        assert replayed(table) == held(table), step
        check_named(table, materialise.finish(table))


def test_a_rollback_across_models_lists_every_row_as_changed(tmp_path):
    table = Folder(str(tmp_path))
    build(table, UNITS, "A")
    build(table, UNITS, "B")
    version = restore.roll_back(table, 1)
    assert (version.counts.changed, version.counts.new, version.counts.unchanged) == (7, 0, 0)
    assert {model for _, _, model in replayed(table).values()} == {"A"} == {snapshot.current(table).fingerprint}
