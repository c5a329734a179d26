"""A snapshot is one committed state of the table: a JSON file whose creation is the commit, with lists of parts and sources.

This file reads and writes these three. How a new state comes about stands in publication.py.
"""

import dataclasses
import datetime
import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq

from pipeline.arrays import ROWS_AT_ONCE
from pipeline.errors import InputError, StorageError
from pipeline.storage import Folder
from pipeline.storage.file import FileInfo
from pipeline.table import layout
from pipeline.table.part import Part, parts_to_table, table_to_parts
from pipeline.work import Unit

SOURCES = pa.schema(
    [
        pa.field("source", pa.int32(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("version", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("start", pa.int64(), nullable=False),
        pa.field("stop", pa.int64(), nullable=False),
        pa.field("unit_id", pa.string(), nullable=False),
        pa.field("unit_rows", pa.int64(), nullable=False),
        pa.field("unit_documents", pa.int64(), nullable=False),
        pa.field("unit_failed", pa.int64(), nullable=False),
        pa.field("unit_skipped", pa.int64(), nullable=False),
    ]
)
"""The list of sources has one row per span of a source file, and `source` is the number that the table's rows carry. The last
four columns count for the whole unit: its rows in the table, and its source rows in the table, among the dead letters, and
left out."""

FORMAT = 2
"""Snapshots and their lists are written in this format, which is the highest that is read. In format 1 there were no lists of
row sources (part.py), and no versions that hold their table (`rows_of`). Its first tables had fewer columns in their lists."""

CONSUMED = pa.schema([pa.field("path", pa.string(), nullable=False), pa.field("version", pa.string(), nullable=False)])
"""The list names staged files, each with its version, because a later run may stage another under the same name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tally:
    """It counts what becomes of source rows. Tallies add up over units."""

    rows: int = 0
    """The table has so many rows of them, one per document or one per chunk."""
    documents: int = 0
    """The table holds so many source rows."""
    failed: int = 0
    """So many source rows are dead letters."""
    skipped: int = 0
    """The configuration leaves out so many source rows."""

    @property
    def source_rows(self) -> int:
        return self.documents + self.failed + self.skipped

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            rows=self.rows + other.rows,
            documents=self.documents + other.documents,
            failed=self.failed + other.failed,
            skipped=self.skipped + other.skipped,
        )


@dataclass(frozen=True, kw_only=True)
class Counts:
    rows: int = 0
    documents: int = 0
    """The rows stand for so many source rows, which are as many unless documents are chunked."""
    new: int = 0
    changed: int = 0
    deleted: int = 0
    unchanged: int = 0
    reused: int = 0
    """So many rows belong to units that were live before and stay as they are."""
    encoded: int = 0
    """The encoder computed so many distinct token rows for this version."""
    failed: int = 0
    """So many source rows of this version have no vector. They are its dead letters."""
    failed_new: int = 0
    skipped: int = 0
    """So many source rows are left out of this version by `source.where` or `source.on_null`."""
    tokens: int = 0
    truncated: int = 0


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """It is one state of the table. Version 0, the state before the first commit, has no file, and `empty()` makes it."""

    version: int
    run: str
    time: str
    """It is the UTC time of the commit in ISO 8601."""
    publication: str
    """This staging folder held the lists until they were materialised."""
    fingerprint: str
    fingerprint_of: Mapping[str, Any]
    """It says in words what the fingerprint was taken over."""
    output: str
    output_spec: Mapping[str, Any]
    embeddings: tuple[Mapping[str, Any], ...]
    schema: str
    """It is the parts' Arrow schema, as a hex IPC message."""
    schema_text: str
    source_schema: str
    """Source files are read as this schema, which is a hex IPC message. Later runs keep to it."""
    probes: tuple[tuple[float, ...], ...]
    """They are vectors of the built-in probe texts."""
    counts: Counts
    gate: Mapping[str, Any]
    timings: Mapping[str, float]
    parent: int
    rows_of: int | None = None
    """These are the rows of that version, where this one rolled the table back. It holds the table until it is released."""
    format: int = FORMAT
    min_reader: int = 1
    """A program must know this format so as not to go wrong. `least_reader` chooses it."""
    parts: tuple[Part, ...] = field(default=(), repr=False)
    sources: pa.Table = field(default_factory=SOURCES.empty_table, repr=False)

    def to_json(self) -> bytes:
        raw = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        del raw["parts"], raw["sources"]
        raw["counts"] = dataclasses.asdict(self.counts)
        return json.dumps(raw, indent=1).encode()

    def model_files(self) -> list[str]:
        """Return the files that say how the vectors are computed and read. They are value ranges, and the int8 model with its
        description."""
        ranges = [named["path"] for entry in self.embeddings if (named := entry.get("calibration"))]
        models = [named for entry in self.embeddings if (named := entry.get("int8"))]
        graphs = [layout.int8_graph(named["path"], named["digest"]) for named in models]
        return [*ranges, *(named["path"] for named in models), *graphs]

    def live_units(self) -> frozenset[str]:
        return frozenset(self.sources.column("unit_id").unique().to_pylist())

    def units(self) -> dict[str, tuple[int, ...]]:
        """Map each live unit to its source numbers in span order, which is by path, then by place in the file."""
        numbers: dict[str, list[tuple[str, int, int]]] = {}
        for row in self.sources.select(["unit_id", "path", "start", "source"]).to_pylist():
            numbers.setdefault(row["unit_id"], []).append((row["path"], row["start"], row["source"]))
        return {unit: tuple(number for _, _, number in sorted(spans)) for unit, spans in numbers.items()}

    def tallies(self) -> dict[str, Tally]:
        """Map each live unit to what it comes to."""
        return _tallies(self.sources)


def empty() -> Snapshot:
    return Snapshot(
        version=0, run="", time="", publication="", fingerprint="", fingerprint_of={}, output="", output_spec={},
        embeddings=(), schema="", schema_text="", source_schema="", probes=(), counts=Counts(), gate={}, timings={}, parent=0,
    )  # fmt: skip


def current(table: Folder) -> Snapshot:
    """Return the snapshot with the highest version and its lists, or `empty()` where there is none."""
    return read(table, max(versions(table), default=0))


def versions(table: Folder) -> list[int]:
    """Return all committed versions, oldest first."""
    found = (layout.version_of(info.path) for info in table.list(layout.VERSIONS))
    return sorted(version for version in found if version is not None)


def utc_now() -> str:
    """Return the time as `Snapshot.time` has it."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def is_held(table: Folder, version: Snapshot) -> bool:
    """Say whether the version rolled the table back, and nobody has released it since. Then runs must not publish."""
    return version.rows_of is not None and table.size(layout.released(version.version)) is None


def read(table: Folder, version: int) -> Snapshot:
    """Return a version with its lists. Raises InputError for one that isn't there or that a newer program wrote."""
    if version == 0:
        return empty()
    alone = read_alone(table, version)
    parts = _read_list(table, layout.parts_list(version), f"{alone.publication}parts.parquet")
    sources = _read_list(table, layout.sources_list(version), f"{alone.publication}sources.parquet")
    return dataclasses.replace(alone, parts=tuple(table_to_parts(parts)), sources=_completed(sources))


def least_reader(parts: Iterable[Part], rows_of: int | None) -> int:
    """Return the format that a program must know to use a version with these parts. A program of format 1 would take rows for
    those of other sources, or publish on top of a version that holds its table."""
    return FORMAT if rows_of is not None or any(part.row_sources is not None for part in parts) else 1


def read_alone(table: Folder, version: int) -> Snapshot:
    """Return the snapshot without its lists, so that parts and sources are empty. Raises what `read` raises."""
    content = table.read(layout.snapshot(version))
    if content is None:
        raise InputError(f"table {table.url} has no version {version}; it has {versions(table)}")
    raw = _parsed(content, f"{table.url}/{layout.snapshot(version)}")
    known = {item.name for item in dataclasses.fields(Snapshot)} - {"parts", "sources"}
    raw = {name: value for name, value in raw.items() if name in known}
    raw["counts"] = Counts(
        **{k: v for k, v in raw["counts"].items() if k in {f.name for f in dataclasses.fields(Counts)}}
    )
    raw["embeddings"] = tuple(raw["embeddings"])
    raw["probes"] = tuple(tuple(vector) for vector in raw["probes"])
    return Snapshot(**{"source_schema": "", **raw})


def _parsed(content: bytes, place: str) -> dict[str, Any]:
    """Parse a snapshot. Raises InputError for what another program wrote, or a newer one."""
    try:
        raw: dict[str, Any] = json.loads(content)
        needed, written = int(raw["min_reader"]), int(raw["format"])
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{place} is not a snapshot of this program: give the table a folder of its own") from None
    if needed > FORMAT:
        raise InputError(
            f"{place} was written in format {written}, and can be used by programs that know format {needed} or a higher one; "
            f"this one knows formats up to {FORMAT}: upgrade it"
        )
    return raw


def _completed(sources: pa.Table) -> pa.Table:
    """Return the list with all columns. The first tables of format 1 had no chunks, and didn't count what is left out."""
    if "unit_documents" not in sources.column_names:
        sources = sources.append_column("unit_documents", sources.column("unit_rows"))
        sources = sources.append_column("unit_skipped", pa.array([0] * sources.num_rows, pa.int64()))
    return sources.select(SOURCES.names).cast(SOURCES)


def write_lists(
    table: Folder, folder: str, parts: Sequence[Part], sources: pa.Table, consumed: pa.Buffer | None = None
) -> None:
    """Put the lists where the snapshot will name them, before it is created. `consumed` is a `consumed_list`."""
    table.write(f"{folder}parts.parquet", to_parquet(parts_to_table(parts)))
    table.write(f"{folder}sources.parquet", to_parquet(sources))
    table.write(layout.consumed(folder), consumed_list((), frozenset()) if consumed is None else consumed)


def consumed_list(files: Iterable[FileInfo], units: Set[str]) -> pa.Buffer:
    """Return the list of the staged files of these units as a Parquet file with the columns of CONSUMED. Rows become bytes as
    they come, because there may be millions."""
    rows = ({"path": info.path, "version": info.version} for info in files if layout.staged_unit(info.path) in units)
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, CONSUMED, compression="zstd") as writer:
        while piece := list(itertools.islice(rows, ROWS_AT_ONCE)):
            writer.write_table(pa.Table.from_pylist(piece, CONSUMED))
    return sink.getvalue()


class Consumed:
    """It knows each staged file that a snapshot's publisher used, by path and version. There are none once they are removed.

    There may be millions, so that a digest of 16 bytes stands for each.
    """

    def __init__(self, table: Folder, version: Snapshot) -> None:
        content = table.read(layout.consumed(version.publication))
        listed = pq.ParquetFile(pa.BufferReader(content or consumed_list((), frozenset())))
        groups = (listed.read_row_group(number, use_threads=False) for number in range(listed.num_row_groups))
        self._known = {_digest(row["path"], row["version"]) for group in groups for row in group.to_pylist()}

    def __contains__(self, info: FileInfo) -> bool:
        return _digest(info.path, info.version) in self._known


def _digest(path: str, version: str) -> bytes:
    return hashlib.blake2b(f"{path}\0{version}".encode("utf-8", "surrogatepass"), digest_size=16).digest()


def span_rows(unit: Unit, tally: Tally) -> list[dict[str, Any]]:
    """Return the rows that a unit adds to the list of sources."""
    return [
        {
            "source": number,
            "path": span.file.path,
            "version": span.file.version,
            "kind": span.kind,
            "start": span.start,
            "stop": span.stop,
            "unit_id": unit.unit_id,
        }
        | tally_columns(tally)
        for span, number in zip(unit.spans, unit.sources, strict=True)
    ]


def tally_columns(tally: Tally) -> dict[str, int]:
    """Return the counts as the list of sources has them."""
    return {f"unit_{name}": count for name, count in dataclasses.asdict(tally).items()}


def total(sources: pa.Table) -> Tally:
    """Add up what all units of a list of sources come to."""
    return sum(_tallies(sources).values(), Tally())


def _tallies(sources: pa.Table) -> dict[str, Tally]:
    columns = ["unit_id", "unit_rows", "unit_documents", "unit_failed", "unit_skipped"]
    return {
        row["unit_id"]: Tally(**{name.removeprefix("unit_"): row[name] for name in columns[1:]})
        for row in sources.select(columns).to_pylist()
    }


def with_tallies(sources: pa.Table, tallies: Mapping[str, Tally]) -> pa.Table:
    """Return the list of sources with the counts of these units."""
    rows = sources.to_pylist()
    for row in rows:
        if row["unit_id"] in tallies:
            row |= tally_columns(tallies[row["unit_id"]])
    return pa.Table.from_pylist(rows, SOURCES)


def schema_to_hex(schema: pa.Schema) -> str:
    return str(schema.serialize().to_pybytes().hex())


def hex_to_schema(text: str) -> pa.Schema:
    return ipc.read_schema(pa.py_buffer(bytes.fromhex(text)))


def to_parquet(table: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def _read_list(table: Folder, path: str, staged: str) -> pa.Table:
    """Read a list from beside the snapshot, or from staging while the version is not yet materialised. Another process may
    bring it from there to here between the two looks, hence a third."""
    content = table.read(path) or table.read(staged) or table.read(path)
    if content is None:
        raise StorageError(f"table {table.url}: neither {path} nor {staged} is there; the table was damaged by hand")
    return read_parquet(content)


def read_parquet(content: bytes | None) -> pa.Table:
    """Return a list of the table, as it was read from storage.

    It is read in this thread. A thread of Arrow's pool that still holds Python's bytes when the interpreter ends aborts the
    process, or hangs it (apache/arrow#33975, #50482).
    """
    # `pq.read_table` would fetch ahead in such a thread even without threads.
    return pq.ParquetFile(pa.BufferReader(content or b"")).read(use_threads=False)
