"""What planning knows of a lakehouse table's file: the log tells its columns and rows, so that most files stay closed.

Comes in: a source file with what its log says. Goes out: a `Look`, as other files give it. Only a file that no
version of the table knows is looked for, and opened where it is more than a unit.
"""

import contextlib
from collections.abc import Sequence

from pipeline.config import SourceSpec
from pipeline.errors import InputError, SourceChanged
from pipeline.sources.formats import registry
from pipeline.sources.formats.form import Look
from pipeline.sources.spans import is_large
from pipeline.storage import look_up, open_pinned
from pipeline.work import Logged, SourceFile


def look(file: SourceFile, logged: Logged, columns: Sequence[str], spec: SourceSpec) -> Look:
    """Raises InputError for a file that is gone: the snapshot can't be read any more."""
    row_groups = None
    if logged.cut is None:
        try:
            if is_large(file.size, logged.rows):
                with contextlib.closing(open_pinned(file.pinned, spec.storage_options, 2**16)) as opened:
                    found = registry.look(opened, file, (), spec)
                if not found.readable:
                    return found
                row_groups = found.row_groups
            else:
                _check_present(file, spec)
        except SourceChanged:
            raise InputError(
                f"{logged.snapshot.label} names the file {file.path!r}, which is gone or has another size now: its "
                "files were vacuumed or moved; read a newer snapshot (source.snapshot), or the table where it was "
                "written"
            ) from None
    types = {column.name: column.type for column in logged.snapshot.columns}
    inside = {name: spec.renamed.get(name, name) for name in columns}
    return Look(
        names={*types, *(name for name, old in inside.items() if old in types)},
        types={name: types[old] for name, old in inside.items() if old in types},
        row_groups=row_groups,
    )


def _check_present(file: SourceFile, spec: SourceSpec) -> None:
    found = look_up(file.path, spec.storage_options)
    if found is None or found.size != file.size:
        raise SourceChanged(file.path)
