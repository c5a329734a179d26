"""A table belongs to the source that it was built from: a configuration that is written for another one must not take it.

The table and the source that were chosen come in, and an InputError goes out where the table has files of another source.
"""

from collections.abc import Callable, Mapping
from typing import Any

from pipeline.config import SourceSpec
from pipeline.errors import InputError, PipelineError
from pipeline.storage import MAGIC, Folder, matcher
from pipeline.table import snapshot
from pipeline.work import lasting_name


def check_free(table: str, options: Mapping[str, Any], source: str) -> None:
    """Raise InputError for a table that was built from files which the path, pattern or URL of a source doesn't stand for.

    A table that can't be looked at from here is taken for a new one: whoever runs the configuration may be elsewhere.
    """
    try:
        built_from = snapshot.current(Folder(table, options)).sources.column("path").unique().to_pylist()
        is_own = _stands_for(source)
    except PipelineError:
        return
    foreign = next((path for path in map(lasting_name, built_from) if not is_own(path)), None)
    if foreign is not None:
        raise InputError(
            f"table {table!r} is there, and was built from another source, with files such as {foreign!r}: {source!r} would "
            "take their place; name another table with --table, or write another configuration with `python -m jobs.init` "
            "and --output, after which its table is named"
        )


def _stands_for(source: str) -> Callable[[str], bool]:
    checks = [_matches(pattern) for pattern in SourceSpec(path=source, text="text").patterns]
    return lambda path: any(check(path) for check in checks)


def _matches(pattern: str) -> Callable[[str], bool]:
    """Return what checks a path. A pattern of folders stands for the files that it matches, any other for all below it."""
    plain = Folder(pattern).url.rstrip("/")
    matches = matcher(plain) if MAGIC.search(plain) else None
    return lambda path: path == plain or path.startswith(f"{plain}/") or (matches is not None and matches(path))
