"""Iceberg tables: what the metadata say of one snapshot, read by `pyiceberg`.

Comes in: the folder of a table, or one of its metadata files, and a SourceSpec. Goes out: the columns, and the data
files with the files that delete rows of them. `pyiceberg` reads by way of our own storage: with the same credentials,
patience and messages as all else.
"""

import contextlib
import datetime
import io
import re
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from pipeline.config import SourceSpec
from pipeline.errors import InputError, PipelineError, one_line
from pipeline.extras import install
from pipeline.sources.column_types import is_uuid, plain_type
from pipeline.sources.lakehouse.data_file import DataFile
from pipeline.storage import NoMatch, Options, is_remote, list_pattern, read_file
from pipeline.work import DeletedRows, LakeColumn, LakeSnapshot

_METADATA = re.compile(r"(?:v(\d+)|(\d+)-[^/]*?)(?:\.gz)?\.metadata\.json(?:\.gz)?")
_EPOCH = datetime.datetime(1970, 1, 1)


def snapshot(root: str, spec: SourceSpec, wanted: set[str]) -> tuple[LakeSnapshot, list[DataFile]]:
    """The snapshot of `source.snapshot`, or the current one. Raises InputError for what can't be read exactly."""
    _check_library()
    metadata = root if root.endswith((".metadata.json", ".metadata.json.gz")) else _newest(root, spec.storage_options)
    label = f"Iceberg table {root!r}"
    with _said(label):
        table = _table(metadata, spec.storage_options)
        chosen, schema = _chosen(table, spec.snapshot, label)
        label = f"{label} snapshot {chosen}" if chosen is not None else label
        mapping = table.name_mapping()
        names = {item.field_id: tuple(item.names) for item in mapping.root} if mapping is not None else {}
        columns = tuple(_columns(table, schema, names, wanted, label))
        tasks = table.scan(snapshot_id=chosen).plan_files() if chosen is not None else ()
        files = [_data_file(task, table, schema, label) for task in tasks]
    return LakeSnapshot(label=label, columns=columns), files


# --- which metadata


def _newest(root: str, options: Options) -> str:
    """The metadata file that holds now: the one that `version-hint.text` names, or the newest after it, else that of
    the highest number. Raises InputError for a folder without any, and where two have that number."""
    folder = f"{root.rstrip('/')}/metadata"
    try:
        listed = [file.path for file in list_pattern(folder, options)]
    except NoMatch:
        listed = []
    found: dict[int, list[str]] = {}
    for path in listed:
        if match := _METADATA.fullmatch(path.rpartition("/")[2]):
            found.setdefault(int(match[1] or match[2]), []).append(path)
    if not found:
        raise InputError(
            f"source.path 'iceberg:{root}' leads to no Iceberg table: there are no metadata files in {folder!r}; "
            "give the folder that holds `metadata`, or a file whose name ends with .metadata.json"
        )
    hint = (read_file(f"{folder}/version-hint.text", options) or b"").decode(errors="replace").strip()
    named = hint if hint.endswith(".metadata.json") else f"{hint}.metadata.json"
    if hint and not hint.isdecimal():
        return f"{folder}/{named}"
    newest = found[max(found)]
    if len(newest) > 1:
        shown = " and ".join(repr(path.rpartition("/")[2]) for path in sorted(newest)[:2])
        raise InputError(
            f"the folder {folder!r} has several newest metadata files, {shown}, and doesn't say which one counts: "
            "give the one that the catalog names, as iceberg:<metadata file>"
        )
    return newest[0]


def _table(metadata: str, options: Options) -> Any:
    from pyiceberg.catalog.noop import NoopCatalog
    from pyiceberg.serializers import FromInputFile
    from pyiceberg.table import StaticTable

    files = _files(options)
    return StaticTable(
        identifier=("table", metadata),
        metadata=FromInputFile.table_metadata(files.new_input(metadata)),
        metadata_location=metadata,
        io=files,
        catalog=NoopCatalog("none"),
    )


def _files(options: Options) -> Any:
    """Our storage as the library wants it: files are read whole, and nothing is written."""
    from pyiceberg.io import FileIO, InputFile, OutputFile

    class Input(InputFile):  # type: ignore[misc]  # the library is not followed
        def __len__(self) -> int:
            return len(self._content())

        def exists(self) -> bool:
            return read_file(_place(self.location), options) is not None

        def open(self, seekable: bool = True) -> Any:
            return io.BytesIO(self._content())

        def _content(self) -> bytes:
            content = read_file(_place(self.location), options)
            if content is None:
                raise InputError(
                    f"{self.location!r} is not there, which the table's metadata name: it was moved, or expired"
                )
            return content

    class Files(FileIO):  # type: ignore[misc]
        def new_input(self, location: str) -> InputFile:
            return Input(location)

        def new_output(self, location: str) -> OutputFile:
            raise NotImplementedError

        def delete(self, location: "str | InputFile | OutputFile") -> None:
            raise NotImplementedError

    return Files()


def _place(location: str) -> str:
    """The path, or URL, of a location: nothing in it is escaped."""
    if location.startswith("file:"):
        return "/" + location.removeprefix("file:").lstrip("/")
    is_remote(location)  # raises InputError for a scheme that is not known
    return location


def _chosen(table: Any, wanted: int | str | None, label: str) -> tuple[int | None, Any]:
    """The id of the snapshot, None for a table without any, and the schema that its rows are read with."""
    refs = table.refs()
    if isinstance(wanted, str) and wanted not in refs and wanted.isdecimal():
        wanted = int(wanted)
    if wanted is None:
        current = table.current_snapshot()
        return (None if current is None else current.snapshot_id), table.schema()
    ref = refs.get(wanted) if isinstance(wanted, str) else None
    found = (
        table.snapshot_by_id(ref.snapshot_id if ref is not None else wanted) if ref or isinstance(wanted, int) else None
    )
    if found is None:
        known = [str(each.snapshot_id) for each in table.snapshots()][-3:]
        raise InputError(
            f"source.snapshot is {wanted!r}, but {label} has no such snapshot, branch or tag: the newest snapshots are "
            f"{', '.join(known) or 'none'}; branches and tags are {', '.join(map(repr, refs)) or 'none'}"
        )
    # A branch goes on with the table's columns, a tag and a snapshot keep theirs.
    if ref is not None and str(ref.snapshot_ref_type.value) == "branch":
        return found.snapshot_id, table.schema()
    return found.snapshot_id, table.schemas().get(found.schema_id, table.schema())


# --- columns and files


def _columns(
    table: Any, schema: Any, names: Mapping[int, tuple[str, ...]], wanted: set[str], label: str
) -> Iterator[LakeColumn]:
    arrow = schema.as_arrow()
    for field, item in zip(schema.fields, arrow, strict=True):
        kind = item.type if is_uuid(item.type) else plain_type(item.type)
        if field.name in wanted and pa.types.is_nested(kind):
            _check_same_inside(table, field, label)
        # Without a number the file must have the name that the mapping says.
        yield LakeColumn(name=field.name, type=kind, field_id=field.field_id, names=names.get(field.field_id, ()))


def _check_same_inside(table: Any, field: Any, label: str) -> None:
    """Raises InputError for a nested column that was another one inside: its parts are found by name, and could be
    mistaken."""
    for schema in table.schemas().values():
        before = next((each for each in schema.fields if each.field_id == field.field_id), None)
        if before is not None and before.field_type != field.field_type:
            raise InputError(
                f"column {field.name!r} of {label} is nested, and was {before.field_type} before it was "
                f"{field.field_type}: older files can't be read as this; leave it out of source.keep, or rewrite the "
                "table's data files"
            )


def _data_file(task: Any, table: Any, schema: Any, label: str) -> DataFile:
    file = task.file
    path = _place(file.file_path)
    if file.file_format.value != "PARQUET":
        raise InputError(
            f"{label} has {file.file_format.value} files, such as {path!r}: only Parquet files can be read"
        )
    if file.key_metadata is not None:
        raise InputError(f"{label} has encrypted files, such as {path!r}: they can't be read")
    return DataFile(
        path=path,
        size=file.file_size_in_bytes,
        rows=file.record_count,
        partition=tuple(_constants(file, table, schema).items()),
        deletes=tuple(sorted((_deletes(each, file, label) for each in task.delete_files), key=lambda each: each.path)),
    )


def _deletes(deletes: Any, file: Any, label: str) -> DeletedRows:
    kind, path, size = deletes.file_format.value, _place(deletes.file_path), deletes.file_size_in_bytes
    if kind == "PARQUET":
        return DeletedRows(kind="positions", path=path, size=size, data_file=file.file_path)
    if kind == "PUFFIN":
        return DeletedRows(kind="puffin", path=path, size=size, data_file=file.file_path)
    raise InputError(
        f"{label} deletes rows by {kind} files, such as {path!r}, which can't be read: rewrite its position deletes"
    )


def _constants(file: Any, table: Any, schema: Any) -> dict[str, Any]:
    """What counts for columns that the file lacks: values of its partition, and defaults of columns that came later."""
    from pyiceberg.transforms import IdentityTransform

    fields = {field.field_id: field for field in schema.fields}
    found = {field.name: field.initial_default for field in schema.fields if field.initial_default is not None}
    for place, part in enumerate(table.specs()[file.spec_id].fields):
        if isinstance(part.transform, IdentityTransform) and part.source_id in fields:
            field = fields[part.source_id]
            found[field.name] = _as_python(file.partition[place], field.field_type)
    return found


def _as_python(value: Any, kind: Any) -> Any:
    """The value of a partition as Python has it: days and microseconds come as numbers."""
    from pyiceberg.types import DateType, TimestampType, TimestamptzType

    if isinstance(value, uuid.UUID):
        return str(value)
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    if isinstance(kind, DateType):
        return (_EPOCH + datetime.timedelta(days=value)).date()
    if isinstance(kind, TimestampType | TimestamptzType):
        zone = datetime.UTC if isinstance(kind, TimestamptzType) else None
        return (_EPOCH + datetime.timedelta(microseconds=value)).replace(tzinfo=zone)
    return value


# --- the library


def _check_library() -> None:
    try:
        import pyiceberg.table  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"iceberg: needs the packages of the extra `iceberg` ({error}): {install('iceberg')}"
        ) from None


@contextlib.contextmanager
def _said(label: str) -> Iterator[None]:
    """What the library raises, in one line."""
    try:
        yield
    except (PipelineError, MemoryError):
        raise
    except Exception as error:  # the library's own types, and any that broken metadata make
        said = " ".join(str(error).split())
        if "equality deletes" in said:
            raise InputError(
                f"{label} deletes rows by equality (as Flink writes them), which can't be read: rewrite its data files "
                "(rewrite_data_files), which applies them"
            ) from None
        raise InputError(f"{label} can't be read: {one_line(said, 300) or type(error).__name__}") from None
