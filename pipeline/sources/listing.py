"""A source is made of the files that its patterns stand for, without those that are left out.

A SourceSpec comes in, and what the table recorded of the files that it was built from. `SourceFile`s go out by path, each
with its format and version, and counts of the files that were left out. This file opens nothing.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from urllib.parse import unquote

from pipeline.config import SourceSpec
from pipeline.errors import InputError
from pipeline.schema import NULL_PARTITION
from pipeline.sources import dataset
from pipeline.sources.columns import column_names
from pipeline.sources.formats import registry
from pipeline.sources.lakehouse.find import find, is_lakehouse
from pipeline.sources.lakehouse.refusal import check_plain
from pipeline.sources.left_out import LeftOut
from pipeline.sources.own_tables import table_of, tables_below
from pipeline.sources.spans import Cut
from pipeline.storage import FileInfo, Listing, is_remote, list_all, local_path, matcher
from pipeline.work import SourceFile

_SAVED_WITH_ARROW = ("dataset_info.json", "state.json")
_SAVED_ABOVE_ARROW = "dataset_dict.json"


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """It is what a table says of the files that it was built from."""

    versions: Mapping[str, Collection[str]] = field(default_factory=dict)
    """It maps paths to the versions of these files."""
    as_of: float = 0.0
    """The table was published at this time, in Unix seconds."""
    cuts: Mapping[tuple[str, str], Cut] = field(default_factory=dict)
    """Files that share no unit with others were cut in this way, by path and version."""


@dataclass(frozen=True, kw_only=True)
class Sources(LeftOut):
    files: tuple[SourceFile, ...]
    """Each file is there once, and they are sorted by path."""

    @property
    def documents(self) -> "Sources":
        """The files that are documents, as under `format: documents`: those whose rows are documents are left out."""
        is_document = {file.path: registry.FORMS[file.format].is_document for file in self.files}
        return replace(
            self,
            files=tuple(file for file in self.files if is_document[file.path]),
            rows=tuple(file.relative for file in self.files if not is_document[file.path]),
        )


def list_sources(spec: SourceSpec) -> list[SourceFile]:
    """Return the files of all patterns, each once, sorted by path. It raises what `find_sources` raises."""
    return list(find_sources(spec).files)


def find_sources(spec: SourceSpec, recorded: Recorded | None = None, partition_by: Sequence[str] = ()) -> Sources:
    """Return the files of all patterns, and count those that were left out.

    Raises InputError for a pattern without files, or without one of a known format, and for files of a lakehouse table that
    are named as if they were plain ones.
    """
    if is_lakehouse(spec):
        columns = list(column_names(spec, [*spec.keep, *partition_by]))
        return Sources(files=find(spec, columns, recorded.cuts if recorded else {}))
    patterns, asked = _patterns(spec)
    listings, tables = _without_tables([list_all(pattern, spec.storage_options) for pattern in patterns], spec)
    found = _without_companions({file.path: file for listing in listings for file in listing.files})
    excluded = _excluded(spec.exclude, found)
    folders = frozenset().union(*(listing.folders for listing in listings))
    check_plain(patterns, found.keys() - excluded, folders, spec.storage_options)
    root = _common_folder([listing.root for listing in listings])
    chosen = {path: file for path, file in sorted(found.items()) if path not in excluded}
    known = {path for path in chosen if _has_format(path, asked)}
    for listing in listings:
        there = [file.path for file in listing.files if file.path in chosen]
        if there and known.isdisjoint(there):
            registry.format_of(there[0], asked)  # it raises
    files = [
        _source_file(file, asked, spec.renamed, recorded or Recorded(), root)
        for path, file in chosen.items()
        if path in known
    ]
    if not found:
        raise InputError(
            f"all files of source.path are those of tables that were embedded already ({', '.join(map(repr, tables))}): give "
            "their documents"
        )
    if not files:
        raise InputError(
            f"source.exclude leaves out all {len(found):,} files of source.path: {', '.join(map(repr, spec.exclude))}"
        )
    hidden = {file.path for listing in listings for file in listing.hidden if _may_be_source(file, asked)}
    left = [path for path in chosen if path not in known]
    rows = {path for path in left if asked == "documents" and _has_format(path, "auto")}
    return Sources(
        files=tuple(files),
        hidden=len(hidden - found.keys()),
        excluded=len(excluded),
        unknown=tuple(path.removeprefix(root) for path in left if path not in rows),
        rows=tuple(path.removeprefix(root) for path in left if path in rows),
        tables=tuple(path.removeprefix(root) for path in tables),
    )


def _patterns(spec: SourceSpec) -> tuple[Sequence[str], str]:
    """Return the patterns to list and the format asked for. A data set stands for its files."""
    if not dataset.is_dataset(spec):
        return spec.patterns, spec.format
    files = dataset.data_files(spec)
    return files.paths, files.format


def _common_folder(roots: Sequence[str]) -> str:
    """Return the folder that all patterns have in common, with a slash at its end: it names a file in the source whatever
    other files there are."""
    common: list[str] = []
    for pieces in zip(*(root.rstrip("/").split("/") for root in roots), strict=False):
        if len(set(pieces)) > 1:
            break
        common.append(pieces[0])
    return "".join(f"{piece}/" for piece in common)


def _source_file(file: FileInfo, asked: str, renamed: Mapping[str, str], recorded: Recorded, root: str) -> SourceFile:
    form, compression = registry.format_of(file.path, asked)
    folders = hive_partition(file.path)
    known = dict(folders)
    return SourceFile(
        path=file.path,
        size=file.size,
        version=_version(file, recorded),
        format=form,
        compression=compression,
        partition=(*folders, *((new, known[old]) for new, old in renamed.items() if old in known and new not in known)),
        root=root,
    )


def _version(file: FileInfo, recorded: Recorded) -> str:
    """Return the version, with the time of the last change where storage tells it. A copy can keep size and modification
    time, so that other bytes would look the same.

    A table that recorded less keeps what it recorded, and so its units, unless the file changed after the table did.
    """
    if not file.changed:
        return file.version
    exact, known = f"{file.version}-{file.changed}", recorded.versions.get(file.path, ())
    unchanged = int(file.changed) <= recorded.as_of * 10**9
    return file.version if file.version in known and exact not in known and unchanged else exact


# --- what is left out


def _without_tables(listings: Sequence[Listing], spec: SourceSpec) -> tuple[Sequence[Listing], Sequence[str]]:
    """Return the listings without the files of tables that lie below them, and the folders of these tables. One that
    `source.exclude` names is no matter of this."""
    kept, gone = [], dict[str, str]()
    for listing in listings:
        tables = tables_below(listing, spec.storage_options)
        tables -= _excluded(spec.exclude, tables)
        inside = {file.path: table for file in listing.files if (table := table_of(file.path, tables))}
        files = tuple(file for file in listing.files if file.path not in inside)
        hidden = tuple(file for file in listing.hidden if not table_of(file.path, tables))
        kept.append(replace(listing, files=files, hidden=hidden))
        gone |= inside
    there = {file.path for listing in kept for file in listing.files}
    return kept, sorted({table for path, table in gone.items() if path not in there})


def _excluded(patterns: Sequence[str], found: Collection[str]) -> frozenset[str]:
    """Return the paths that a pattern of `source.exclude` matches, or one of whose folders it matches."""
    checks = [_matches_below(pattern) for pattern in patterns]
    return frozenset(path for path in found if any(check(each) for each in _with_folders(path) for check in checks))


def _matches_below(pattern: str) -> Callable[[str], bool]:
    """Return what checks a path. A pattern without a root matches wherever it stands in one."""
    pattern = pattern.rstrip("/")
    rooted = pattern.startswith(("/", "~", "file:")) or "://" in pattern
    if not rooted:
        return matcher(f"**/{pattern.removeprefix('./')}")
    return matcher(pattern if is_remote(pattern) else local_path(pattern))


def _with_folders(path: str) -> Iterable[str]:
    pieces = path.split("/")
    return ("/".join(pieces[:count]) for count in range(1, len(pieces) + 1))


def _may_be_source(file: FileInfo, asked: str) -> bool:
    """Say whether a hidden file looks like one that somebody would want. The marks and checksums that Spark leaves beside
    its files do not, and neither does what editors and systems hide."""
    name = file.path.rpartition("/")[2].lstrip("._")
    if not file.size or "." not in name or name.endswith(".crc"):
        return False
    return _has_format(name, asked)


def _has_format(path: str, asked: str) -> bool:
    try:
        registry.format_of(path, asked)
    except InputError:
        return False
    return True


def _without_companions(found: Mapping[str, FileInfo]) -> Mapping[str, FileInfo]:
    """Leave out what `datasets` puts beside the Arrow files of a saved data set: descriptions, and caches of results."""
    folders = {_folder(path) for path in found if path.endswith(".arrow") and not _is_cache(path)}
    above = {_folder(folder) for folder in folders}

    def is_companion(path: str) -> bool:
        folder, name = _folder(path), path.rpartition("/")[2]
        if folder in folders and (name in _SAVED_WITH_ARROW or _is_cache(path)):
            return True
        return name == _SAVED_ABOVE_ARROW and folder in folders | above

    return {path: file for path, file in found.items() if not is_companion(path)}


def _folder(path: str) -> str:
    return path.rpartition("/")[0]


def _is_cache(path: str) -> bool:
    name = path.rpartition("/")[2]
    return name.startswith("cache-") and name.endswith(".arrow")


def hive_partition(path: str) -> tuple[tuple[str, str | None], ...]:
    """Return the `key=value` folders of a path, unescaped, in path order. A key that comes again counts where it is
    deepest."""
    pairs: dict[str, str | None] = {}
    for folder in path.split("/")[:-1]:
        key, equals, value = folder.partition("=")
        if key and equals:
            pairs[_unescaped(key)] = None if value == NULL_PARTITION else _unescaped(value)
    return tuple(pairs.items())


def _unescaped(text: str) -> str:
    """Unescape the text. It stays as it is where the escaped bytes are no UTF-8, since two folders must not come to one
    value."""
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        return text
