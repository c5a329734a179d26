"""Delta tables: what the log says of one version, read by `deltalake`.

Comes in: the folder of a table and a SourceSpec. Goes out: the columns, and the data files with their partition
values and deletion vectors. `deltalake` gets a copy of the log's own files, so that they are read with the same
credentials, patience and messages as all else, from any store that we know. What the copy lacks are the data files,
which it never opens.
"""

import contextlib
import json
import tempfile
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.config import SourceSpec
from pipeline.errors import InputError, one_line
from pipeline.extras import install
from pipeline.sources.lakehouse import deletion_vectors, delta_log
from pipeline.sources.lakehouse.data_file import DataFile
from pipeline.storage import is_remote, local_path
from pipeline.work import LakeColumn, LakeSnapshot

_READ = frozenset(
    [
        "columnMapping",
        "deletionVectors",
        "timestampNtz",
        "typeWidening",
        "typeWidening-preview",
        "v2Checkpoint",
        "vacuumProtocolCheck",
    ]
)
"""The features of tables whose rows are read exactly; others are refused by name."""


_TOLD = ("path", "size_bytes", "modification_time", "num_records", "partition")
"""What is needed of an action; the statistics of columns can be long."""


def snapshot(root: str, spec: SourceSpec, wanted: set[str]) -> tuple[LakeSnapshot, list[DataFile]]:
    """The version of `source.snapshot`, or the newest one. Raises InputError for what can't be read exactly."""
    version = spec.snapshot
    if version is not None and not isinstance(version, int):
        raise InputError(f"source.snapshot is {version!r}; of a Delta table expected the number of a version, or null")
    with tempfile.TemporaryDirectory(prefix="delta-log-") as copy:
        log = delta_log.copied(root, version, spec.storage_options, Path(copy))
        label = f"Delta table {root!r} version {log.version}"
        with _said(label, copy):
            return _read(root, log, label, wanted)


def _read(root: str, log: delta_log.Log, label: str, wanted: set[str]) -> tuple[LakeSnapshot, list[DataFile]]:
    table = _library().DeltaTable(str(log.folder), version=log.version)
    features = set(table.protocol().reader_features or ())
    if unknown := sorted(features - _READ):
        raise InputError(
            f"{label} needs the reader feature {unknown[0]!r}, which is not known here: known are {', '.join(sorted(_READ))}; "
            "write the rows to a table without it"
        )
    schema = pa.schema(table.schema().to_arrow())
    mode = table.metadata().configuration.get("delta.columnMapping.mode", "none")
    columns = tuple(_column(item, mode, label, wanted) for item in schema)
    partitioned = table.metadata().partition_columns
    found = pa.table(table.get_add_actions())
    actions = found.select([name for name in found.column_names if name in _TOLD]).to_pylist()
    paths = {action["path"] for action in actions}
    vectors = log.deletion_vectors(paths) if "deletionVectors" in features else {}
    files = [
        DataFile(
            path=_absolute(root, action["path"]),
            size=action["size_bytes"],
            written=(str(action["modification_time"]),),
            rows=action["num_records"],
            partition=tuple((name, action["partition"][name]) for name in partitioned),
            deletes=deletion_vectors.described(root, vectors.get(action["path"])),
        )
        for action in actions
    ]
    return LakeSnapshot(label=label, columns=columns), files


def _column(item: pa.Field, mode: str, label: str, wanted: set[str]) -> LakeColumn:
    if mode == "none":
        return LakeColumn(name=item.name, type=item.type, names=(item.name,))
    if item.name in wanted and pa.types.is_nested(item.type):
        raise InputError(
            f"column {item.name!r} of {label} is {item.type}, and the table maps names (delta.columnMapping.mode "
            f"is {mode}): nested columns of such tables can't be read; leave it out of source.keep"
        )
    told = {key.decode(): value.decode() for key, value in (item.metadata or {}).items()}
    if mode == "id":
        return LakeColumn(name=item.name, type=item.type, field_id=int(told["delta.columnMapping.id"]))
    return LakeColumn(name=item.name, type=item.type, names=(told["delta.columnMapping.physicalName"],))


def _absolute(root: str, path: str) -> str:
    """The place of a path of the log, which is escaped as in a URL, and most often below the table's folder."""
    plain = urllib.parse.unquote(path)
    if "://" in plain and is_remote(plain):
        return plain
    if plain.startswith("file:"):
        return "/" + plain.removeprefix("file:").lstrip("/")
    return plain if plain.startswith("/") else f"{root.rstrip('/') if is_remote(root) else local_path(root)}/{plain}"


def _library() -> Any:
    try:
        import deltalake
    except ImportError as error:
        raise InputError(f"delta: needs the packages of the extra `delta` ({error}): {install('delta')}") from None
    return deltalake


@contextlib.contextmanager
def _said(label: str, copy: str) -> Iterator[None]:
    """What the library raises, in one line, without the place of the copy."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:  # the library's own types, and any that broken JSON makes
        said = " ".join(str(error).split()).replace(copy, "").replace(json.dumps(copy)[1:-1], "")
        raise InputError(f"{label} can't be read: {one_line(said, 300) or type(error).__name__}") from None
