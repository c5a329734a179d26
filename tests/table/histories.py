"""What can happen to a table, without sources and encoders: versions of some units by some model, and files exported anew; and
what holds after each step."""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping

import numpy as np

from pipeline import identity
from pipeline.storage import Folder
from pipeline.table import diff, layout, materialise, row_sources, snapshot
from pipeline.table.operations import merge_rows
from pipeline.table.operations.merge_rows import Revision
from pipeline.table.operations.replace_units import Work
from pipeline.table.publication import Publication
from pipeline.table.record import Effort
from pipeline.table.snapshot import Snapshot
from pipeline.table.workers import WorkersHere
from pipeline.work import SourceFile, Span, Unit
from tests.table.test_publish import commit, describe, make_unit, stage


def build(table: Folder, desired: Mapping[str, Iterable[str]], model: str = "m") -> Snapshot:
    """A run of a model over these units and their ids; another model's vectors take the place of all. The texts of a unit are
    the same whatever the model."""
    parent = materialise.finish(table)
    live, numbers = parent.live_units(), free_numbers(parent)
    made = [(name, make_unit(f"{model}-{name}", next(numbers))) for name in desired]
    done = [
        (unit, [stage(table, unit, list(desired[name]), where=name)]) for name, unit in made if unit.unit_id not in live
    ]
    kept = frozenset(unit.unit_id for _, unit in made) & live
    described = dataclasses.replace(describe(), fingerprint=model)
    version = commit(Publication(table, parent), Work(done=done, kept=kept), described)
    materialise.materialise(table, version)
    return version


def free_numbers(version: Snapshot) -> Iterable[int]:
    taken = set(version.sources.column("source").to_pylist())
    return (number for number in itertools.count() if number not in taken)


def export_anew(table: Folder) -> Snapshot:
    """A reindex of files that have the same rows under other names: each row stays, and gets the number of another source."""
    parent = materialise.finish(table)
    publication, numbers = Publication(table, parent), free_numbers(parent)
    new = {number: next(numbers) for own in parent.units().values() for number in own}
    added = [
        (exported(f"{unit}-{publication.number}", [new[number] for number in own]), parent.tallies()[unit])
        for unit, own in parent.units().items()
    ]
    moved = [np.zeros(0, diff.MATCH)]
    for place, part in enumerate(parent.parts):
        rows = np.zeros(part.rows, diff.MATCH)
        rows["part"], rows["index"] = place, np.arange(part.rows)
        rows["source"] = [new[number] for number in row_sources.of(table, part).tolist()]
        moved.append(rows)
    nothing = np.zeros(0, diff.PLACE)
    revision = Revision(
        added=added,
        kept=frozenset(),
        stale={},
        unchanged=frozenset(),
        moved=np.concatenate(moved),
        removed=nothing,
        deleted=nothing,
        fresh=[],
        dead_letters=[],
        new=0,
        changed=0,
        failed_new=0,
        effort=Effort(),
        bad_vectors=0,
        done=frozenset(),
    )
    described = dataclasses.replace(describe(), fingerprint=parent.fingerprint)
    version, _ = merge_rows.publish(publication, revision, described, WorkersHere(table, "embedding"))
    materialise.materialise(table, version)
    return version


def exported(name: str, numbers: list[int]) -> Unit:
    file = SourceFile(path=f"/src/{name}", size=1, version="1", format="jsonl")
    spans = tuple(
        Span(file=file, kind="bytes", start=place, stop=place + 1, rows=None) for place in range(len(numbers))
    )
    return Unit(unit_id=identity.digest(name), spans=spans, sources=tuple(numbers))


def check_named(table: Folder, version: Snapshot) -> None:
    """Every file that the version names is there, and has what the version says of it."""
    for part in version.parts:
        assert table.size(part.path) == part.size
        numbers = row_sources.of(table, part)
        assert len(numbers) == part.rows
        assert sorted(set(numbers.tolist())) == list(part.sources)
    for path in version.model_files():
        assert table.size(path) is not None


def replayed(table: Folder) -> dict[str, tuple[bytes, int, str]]:
    """What somebody holds who followed all lists of changes: the hashes of each id, and which model its vector is of."""
    rows: dict[str, tuple[bytes, int, str]] = {}
    for number in snapshot.versions(table):
        model = snapshot.read_alone(table, number).fingerprint
        for info in table.list(layout.changes(number)):
            for row in snapshot.read_parquet(table.read(info.path)).to_pylist():
                rows.pop(row["id"], None)
                if row["op"] == "upsert":
                    rows[row["id"]] = (row["content_hash"], row["row_hash"], model)
    return rows


def held(table: Folder) -> dict[str, tuple[bytes, int, str]]:
    """What the current version has."""
    current = materialise.finish(table)
    columns = ["id", "content_hash", "row_hash"]
    files = [snapshot.read_parquet(table.read(part.path)).select(columns) for part in current.parts]
    found = [row for rows in files for row in rows.to_pylist()]
    assert len({row["id"] for row in found}) == len(found) == current.counts.rows
    return {row["id"]: (row["content_hash"], row["row_hash"], current.fingerprint) for row in found}
