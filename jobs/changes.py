"""Tell what changed between two versions of a table, for programs that follow it.

    python -m jobs.changes CONFIG.yaml --since N [--until M] [--rows] [--output FILE.parquet]

Each id comes once, with what holds now: an upsert with its hashes, or a delete. From version 0 all rows are upserts. Without
--output a JSON object per line is printed; --rows adds the rows, with their vectors as floats. Without --since an error says
which versions there are. The table's path or URL can stand in the place of the configuration. Exit codes: 0 done; 1 storage
failed; 2 bad input, or changes that are not complete any more.

For example, the rows that came, went or changed since version 3:

    python -m jobs.changes run.yaml --since 3
"""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.command import main_of, parser
from pipeline.errors import InputError
from pipeline.runs.recorded import none_published, table_of
from pipeline.schema import CHANGES
from pipeline.table import changed_rows, snapshot

_SUFFIXES = ("", ".parquet", ".pq")


def main(argv: Sequence[str] | None = None) -> int:
    command = parser(__doc__, dry_run=False, takes_tables=True)
    command.add_argument("--since", metavar="N", type=int, help="the version that is known")
    command.add_argument("--until", metavar="M", type=int, help="the version that is wanted (the current one)")
    command.add_argument("--rows", action="store_true", help="with all columns, and the vectors as floats")
    command.add_argument("--output", metavar="FILE", help="write a Parquet file in place of lines")
    arguments = command.parse_args(argv)
    _check_output(arguments.output)
    table = table_of(arguments.config, arguments.set)
    if arguments.since is None:
        raise InputError(_which(snapshot.versions(table)))
    version = snapshot.current(table) if arguments.until is None else snapshot.read(table, arguments.until)
    if not version.version:
        raise none_published(table.url)
    found = changed_rows.changes(table, arguments.since, version, with_rows=arguments.rows)
    if arguments.output is None:
        for rows in found:
            for line in _lines(rows):
                print(line)
        return 0
    written = _write(found, arguments.output)
    told = {"since": arguments.since, "until": version.version, "changes": written, "output": arguments.output}
    arguments.show(
        told, f"{written:,} changes from version {arguments.since} to {version.version} in {arguments.output}"
    )
    return 0


def _which(versions: Sequence[int]) -> str:
    """Say what --since takes. None is taken without it: who follows a table knows which version it has."""
    if not versions:
        return "--since is missing, and the table has no published version yet: embed something first"
    newest, before = max(versions), max([number for number in versions if number < max(versions)], default=0)
    return (
        f"--since is missing: give the version that you know, of {min(versions)} to {newest}; since {before} there is what "
        f"the newest one, {newest}, brought, and since 0 all rows"
    )


def _check_output(path: str | None) -> None:
    if path is not None and os.path.splitext(path)[1].lower() not in _SUFFIXES:
        raise InputError(
            f"--output {path!r} would not be what its name says: changes are written as Parquet, so end it with .parquet, or "
            "leave --output out and have lines of JSON"
        )


def _lines(rows: pa.Table) -> Iterator[str]:
    for row in rows.to_pylist():
        yield json.dumps(row, default=_text, ensure_ascii=False)


def _text(value: Any) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


def _write(found: Iterator[pa.Table], path: str) -> int:
    """Write the file whole or not at all, and return how many changes it has."""
    unfinished = f"{path}.tmp"
    writer, count = None, 0
    try:
        for rows in found:
            if writer is None:
                writer = pq.ParquetWriter(unfinished, rows.schema, compression="zstd")
            writer.write_table(rows)
            count += rows.num_rows
        if writer is None:
            writer = pq.ParquetWriter(unfinished, CHANGES)
        writer.close()
        os.replace(unfinished, path)
    except OSError as error:
        raise InputError(f"--output {path!r} can't be written: {error}") from None
    return count


if __name__ == "__main__":
    sys.exit(main_of(main))
