"""What must hold when nobody works: the table against its lists, against all it ever said, and against a fresh build."""

import functools
import io
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import PipelineError
from pipeline.identity import content_hashes
from pipeline.runs import embed as embedding
from pipeline.storage import Folder
from pipeline.table import dead_letters, layout, row_sources, rows, snapshot
from pipeline.table.snapshot import Snapshot
from tests.inline import InProcess
from tests.simulation.watch import TABLE, hashes_of
from tests.simulation.world import World

CHECKER, FRESH = "checker", "memory://fresh/fresh"
"""They are no processes of a schedule, and nothing is in their way."""


def check_table(world: World) -> None:
    """The versions, the rows of those that are kept, and the changes: after any step, whoever died in it."""
    table, watch = Folder(world.url(CHECKER)), world.watch
    numbers = snapshot.versions(table)
    if numbers != list(range(1, len(numbers) + 1)) or numbers != sorted(watch.versions):
        world.violated(f"the versions are {numbers}, committed were {sorted(watch.versions)}")
    for version in watch.kept():
        for missing in watch.missing(version):
            world.violated(missing)
    if numbers:
        try:
            current = snapshot.current(table)
            for version in watch.kept():
                if version.number == current.version or watch.erased.isdisjoint(version.rows):
                    _check_rows(world, table, snapshot.read(table, version.number))
            _check_lists(world, table, current)
            _check_replay(world, table, current)
        except Exception as error:
            world.violated(f"the table can't be read: {type(error).__name__}: {error}")


def _check_rows(world: World, table: Folder, current: Snapshot) -> None:
    known = world.watch.versions[current.version]
    where = rows.places(table)
    found: dict[str, Any] = {}
    for part in current.parts:
        own = _hashes(table.read(rows._place(part, where, table, current)) or b"")
        if len(own) != part.rows or own.keys() & found.keys():
            world.violated(f"{part.path} of version {current.version} has {len(own)} rows of {part.rows}, or ids twice")
        found |= own
    if found != known.rows:
        world.violated(f"version {current.version} no longer has the rows that it was committed with")
    if len(found) != current.counts.rows:
        world.violated(f"version {current.version} counts {current.counts.rows} rows and has {len(found)}")


@functools.lru_cache(maxsize=10_000)
def _hashes(content: bytes) -> Mapping[str, tuple[bytes, int]]:
    """Files never change: many steps come by the same ones."""
    return hashes_of(snapshot.read_parquet(content))


@functools.lru_cache(maxsize=10_000)
def _rows(content: bytes) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = snapshot.read_parquet(content).to_pylist()
    return rows


def _check_lists(world: World, table: Folder, current: Snapshot) -> None:
    """Rows and dead letters stand for listed sources, in the numbers that the units say."""
    sources = {row["source"]: row for row in current.sources.to_pylist()}
    owners: Counter[int] = Counter()
    for part in current.parts:
        numbers = row_sources.of(table, part).tolist()
        owners.update(numbers)
        if set(numbers) != set(part.sources):
            world.violated(f"{part.path} names the sources {part.sources}, its rows {sorted(set(numbers))}")
    letters = [row for found in dead_letters.read(table, current) for row in found.to_pylist()]
    failed = Counter(row["source"] for row in letters)
    for number in owners.keys() | failed.keys():
        if number not in sources:
            world.violated(
                f"version {current.version} has rows or dead letters of source {number}, which is not listed"
            )
    for unit, tally in current.tallies().items():
        numbers = current.units()[unit]
        have = sum(owners[number] for number in numbers), sum(failed[number] for number in numbers)
        if have != (tally.rows, tally.failed):
            world.violated(
                f"unit {unit[:8]} of version {current.version} counts {tally}, and has {have} rows and dead letters"
            )
    total = snapshot.total(current.sources)
    counts = current.counts
    if (counts.documents, counts.failed, counts.skipped) != (total.documents, len(letters), total.skipped):
        world.violated(f"version {current.version} counts {counts}; its units {total}, its dead letters {len(letters)}")


def _check_replay(world: World, table: Folder, current: Snapshot) -> None:
    """Whoever follows the lists of changes has what the table has."""
    replayed: dict[str, tuple[bytes, int, str]] = {}
    for number in sorted(world.watch.versions):
        fingerprint = world.watch.versions[number].fingerprint
        folders = (layout.changes(number), f"{snapshot.read_alone(table, number).publication}changes/")
        listed = next((found for found in map(table.list, folders) if found), [])
        for info in listed:
            for row in _rows(table.read(info.path) or b""):
                replayed.pop(row["id"], None)
                if row["op"] == "upsert":
                    replayed[row["id"]] = (row["content_hash"], row["row_hash"], fingerprint)
    held = {name: (*hashes, current.fingerprint) for name, hashes in world.watch.versions[current.version].rows.items()}
    if replayed != held:
        wrong = sorted(name for name in replayed.keys() | held.keys() if replayed.get(name) != held.get(name))
        world.violated(f"the changes up to version {current.version} replay to other rows: {wrong[:5]}")


# --- a fresh build

Contents = tuple[Mapping[str, Any], Counter[Any], tuple[int, ...]]
"""The row of each id, the dead letters, and the counts."""
_built: dict[str, Contents | str] = {}
"""By source and configuration: pairs of commands come by the same ones again and again."""


def check_as_fresh(world: World) -> None:
    """The table is what a run on an empty store makes of the source as it is now."""
    expected = _fresh(world)
    if isinstance(expected, str):
        world.violated(f"a fresh build is refused, and the table was published: {expected}")
        return
    try:
        found = _contents(Folder(world.url(CHECKER)))
    except Exception as error:
        world.violated(f"the table can't be read: {type(error).__name__}: {error}")
        return
    for (name, row), other in ((item, found[0].get(item[0])) for item in expected[0].items()):
        if other is None:
            world.violated(f"row {name} is missing, a fresh build has it")
        elif row[0] != other[0]:
            differ = [column for column in row[0] if row[0][column] != other[0].get(column)]
            world.violated(f"row {name} differs from a fresh build's in {differ or sorted(other[0])}")
        elif np.abs(row[1] - other[1]).max() > 1e-6:
            world.violated(f"row {name} has another vector than in a fresh build")
    for name in found[0].keys() - expected[0].keys():
        world.violated(f"row {name} is in the table, and not in a fresh build")
    if found[1:] != expected[1:]:
        world.violated(f"dead letters and counts {found[1:]} differ from a fresh build's {expected[1:]}")


def _fresh(world: World) -> Contents | str:
    spec = world.corpus.spec(FRESH)
    key = f"{world.corpus.model} {world.corpus.settings} {world.corpus.files}"
    if key not in _built:
        with world.aside():
            try:
                embedding.embed(spec, InProcess())
                _built[key] = _contents(Folder(FRESH))
            except PipelineError as error:
                _built[key] = f"{type(error).__name__}: {error}"
    return _built[key]


def _contents(table: Folder) -> Contents:
    current = snapshot.current(table)
    paths = {row["source"]: row["path"] for row in current.sources.to_pylist()}
    found: dict[str, Any] = {}
    for part in current.parts:
        column = str(current.embeddings[0]["column"])
        content = table.read(part.location) or table.read(part.path) or b""
        for row, number in zip(_rows(content), row_sources.of(table, part).tolist(), strict=True):
            columns = {name: value for name, value in row.items() if name not in (column, "source")}
            more = {"path of its source": paths[number]} | dict(part.partition)
            found[row["id"]] = (columns | more, np.array(row[column], np.float32))
    letters = Counter(
        (row["path"], row["position"], row["stage"], row["id"])
        for some in dead_letters.read(table, current)
        for row in some.to_pylist()
    )
    counts = current.counts
    return found, letters, (counts.rows, counts.documents, counts.failed, counts.skipped)


# --- what was erased


def traces(world: World, ids: Collection[str], own: Collection[int] = ()) -> list[str]:
    """The files below the table that decode to an erased row; the lists of changes of the versions `own` may name the ids."""
    texts = {text for name in ids for text in world.corpus.texts.get(name, ())}
    hashes = content_hashes(pa.array(sorted(texts), pa.string()), "").to_pylist()
    wanted = {"id": set(ids), "doc_id": set(ids), "text": texts, "content_hash": set(hashes)}
    folders = tuple(f"{TABLE}{layout.changes(number)}" for number in own)
    return [
        key.removeprefix(TABLE)
        for key in world.place.names()
        if key.startswith(TABLE) and not key.startswith(folders) and _tells(world.place.get(key) or b"", wanted)
    ]


def _tells(content: bytes, wanted: Mapping[str, set[Any]]) -> bool:
    try:
        found = pq.read_table(io.BytesIO(content), use_threads=False)
    except (pa.ArrowException, OSError):
        names = [f'"{name}"' for name in wanted["id"]]
        return any(text.encode() in content for text in [*names, *wanted["text"]])
    held = [name for name in wanted if name in found.column_names]
    return any(not wanted[name].isdisjoint(found.column(name).to_pylist()) for name in held)
